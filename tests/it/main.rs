//! The integration tests, one binary: what crosses a module or a process boundary.

mod api;
mod bad_input;
mod client;
mod commands;
mod durability;
mod fake_control_plane;
mod gateway;
mod generated;
mod journey_cloud;
mod journey_home;
mod layers;
mod nodes_drain;
mod nodes_list;
mod scripted_engine;
mod store_trouble;
mod support;
