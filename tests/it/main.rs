//! The integration tests, one binary: what crosses a module or a process boundary.

mod api;
mod client;
mod commands;
mod config;
mod config_command;
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
mod openapi;
mod scenarios;
mod scripted_engine;
mod support;
