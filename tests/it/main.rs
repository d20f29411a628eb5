//! The integration tests, one binary: what crosses a module or a process boundary.

mod api;
mod client;
mod commands;
mod completions;
mod events;
mod fake_control_plane;
mod gateway;
mod generated;
mod journey_cloud;
mod journey_home;
mod layers;
mod nodes_drain;
mod nodes_list;
mod nodes_verbs;
mod nodes_watch;
mod pools;
mod scripted_engine;
mod support;
