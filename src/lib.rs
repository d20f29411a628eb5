//! x
pub mod admission;
pub mod api;
pub mod clock;
pub mod control;
pub mod dispatch;
pub mod gateway;
pub mod listen;
pub mod registry;
pub mod relay;
pub mod store;
pub mod types;
