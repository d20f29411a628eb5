//! The integration tests, one binary: what crosses a module or a process boundary.

mod commands;
mod generated;
mod layers;
