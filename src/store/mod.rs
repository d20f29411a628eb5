//! What must outlive the process: registrations, intent, and what routing needs again after a restart.
//!
//! Purpose: one trait, so that where it is kept is nobody else's concern. Invariants: `apply` is all or nothing, and what
//! it acknowledged is there after `kill -9`; a store that cannot be understood is left untouched. Called by `control`,
//! from its one lane.

mod memory;
mod sqlite;

use std::path::PathBuf;

use crate::registry::{Drain, Observed, Record, Restored};
use crate::types::NodeId;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// One field of one node, as it is to be kept. `None` removes it.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The registration.
    Record(NodeId, Option<Record>),
    /// The drain.
    Drain(NodeId, Option<Drain>),
    /// What was observed of it.
    Observed(NodeId, Option<Observed>),
}

/// Everything that was kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// Number of the last batch.
    pub revision: u64,
    /// Every node of which something is kept, in no order.
    pub nodes: Vec<Restored>,
}

/// Where the fleet is kept.
pub trait Store: Send {
    /// Reads everything.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for what cannot be understood, else what the medium says.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes a batch, all or nothing, durable when it returns; gives the new revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody else has written since `expected_revision`, else what the medium says.
    fn apply(&mut self, batch: &[Write], expected_revision: u64) -> Result<u64, StoreError>;
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made or opened.
    #[error("cannot use the state directory {path}: {source}; choose another with --state-dir")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "the state directory {path} is in use by {holder}; stop that one, or choose another with --state-dir"
    )]
    Held {
        /// Which.
        path: PathBuf,
        /// Who, as far as its lock file tells.
        holder: String,
    },
    /// Written by a newer version of orchd.
    #[error(
        "{path} was written by a newer orchd (schema {found}, this one knows {known}); run that version, or move the file \
         away to start empty; it has not been touched"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Not what orchd writes.
    #[error(
        "{path} is damaged ({detail}); restore it from a backup, or move it away to start empty; it has not been touched"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Somebody else has written meanwhile.
    #[error(
        "the store is at revision {found}, not {expected}: another control plane has written to it"
    )]
    Conflict {
        /// What was expected.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The medium does not take it: a full disk, a read-only file system.
    #[error("the store cannot be written: {0}")]
    Unwritable(#[source] rusqlite::Error),
    /// The file was moved, replaced or deleted while it was in use.
    #[error(
        "{path} is no longer the file that was opened: it was moved, replaced or deleted; put it back, or restart orchd to \
         begin with what is there now"
    )]
    Gone {
        /// Which file.
        path: PathBuf,
    },
    /// The medium does not let it be opened or read.
    #[error(
        "the store {path} cannot be opened: {source}; see that it can be read and written and that its disk has room, or \
         choose another directory with --state-dir"
    )]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

#[cfg(test)]
mod tests;
