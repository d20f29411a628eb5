//! The integration tests, one binary: what crosses a module or a process boundary.

mod api;
mod client;
mod commands;
mod completions;
mod config;
mod config_command;
mod events;
mod fake_control_plane;
mod fleet;
mod gateway;
mod generated;
mod journey_cloud;
mod journey_home;
mod layers;
mod metrics;
mod nodes_drain;
mod nodes_list;
mod nodes_verbs;
mod nodes_watch;
mod openapi;
mod pools;
mod scenarios;
mod scripted_engine;
mod support;
