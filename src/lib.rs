//! x
pub mod cli;
pub mod client;
pub mod commands;
pub mod types;
