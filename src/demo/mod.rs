//! `orchd demo`: a control plane, nodes and small engines on one machine, for whoever wants to see a fleet at work.
//!
//! Purpose: start the parts as processes of their own, so that they can really be killed, and end them. Invariants:
//! nothing of it outlives it, however it ends; nothing of the user's own settings and state has a part in it. Called by
//! `commands::demo`.

pub mod engine;
mod fleet;
mod leash;
mod part;
mod place;

pub use fleet::{DemoError, Engines, Fleet, NODE_TIMEOUT, Settings};
pub use leash::become_part;
pub use part::{Line, Part, Role, quoted};
