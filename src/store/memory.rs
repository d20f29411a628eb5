//! A store that ends with the process: for the HOME profile, whose fleet is its configuration, and for tests.

use std::collections::BTreeMap;

use crate::registry::{Drain, Observed, Record, Restored};
use crate::types::NodeId;

use super::{Loaded, Store, StoreError, Write};

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    revision: u64,
    records: BTreeMap<NodeId, Record>,
    drains: BTreeMap<NodeId, Drain>,
    observed: BTreeMap<NodeId, Observed>,
}

fn put<T: Clone>(kept: &mut BTreeMap<NodeId, T>, id: &NodeId, value: Option<&T>) {
    match value {
        Some(value) => drop(kept.insert(id.clone(), value.clone())),
        None => drop(kept.remove(id)),
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let nodes = self.records.iter().map(|(node_id, record)| Restored {
            node_id: node_id.clone(),
            record: record.clone(),
            drain: self.drains.get(node_id).cloned(),
            observed: self.observed.get(node_id).cloned().unwrap_or_default(),
        });
        Ok(Loaded {
            revision: self.revision,
            nodes: nodes.collect(),
        })
    }

    fn apply(&mut self, batch: &[Write], expected_revision: u64) -> Result<u64, StoreError> {
        if expected_revision != self.revision {
            return Err(StoreError::Conflict {
                expected: expected_revision,
                found: self.revision,
            });
        }
        for write in batch {
            match write {
                Write::Record(id, record) => put(&mut self.records, id, record.as_ref()),
                Write::Drain(id, drain) => put(&mut self.drains, id, drain.as_ref()),
                Write::Observed(id, observed) => put(&mut self.observed, id, observed.as_ref()),
            }
        }
        self.revision += 1;
        Ok(self.revision)
    }
}
