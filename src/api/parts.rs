//! What is said of a whole fleet, put together a few nodes at a time.
//!
//! Invariants: neither heartbeats nor this thread's other connections wait for ten thousand nodes; of a long list only its
//! text is held whole.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::types::NodeId;

/// Nodes that are looked at in one moment.
const PART: usize = 64;

/// Looks at some nodes after the other.
pub(super) async fn each(node_ids: &[NodeId], mut look: impl FnMut(&[NodeId])) {
    for part in node_ids.chunks(PART) {
        look(part);
        tokio::task::yield_now().await;
    }
}

/// A list as it is sent. `part` gives what some nodes have to it; `rest` gives all of it but that, once it is known how
/// much there is: its first field, the list, is called `field` and empty.
pub(super) async fn written<T: Serialize, L: Serialize>(
    field: &str,
    node_ids: &[NodeId],
    mut part: impl FnMut(&[NodeId]) -> Vec<T>,
    rest: impl FnOnce(usize) -> L,
) -> Response {
    let before = format!("{{\"{field}\":[");
    let mut text = before.clone().into_bytes();
    let mut count = 0;
    each(node_ids, |node_ids| {
        for item in part(node_ids) {
            if count > 0 {
                text.push(b',');
            }
            count += 1;
            serde_json::to_writer(&mut text, &item).expect("our own types always serialise");
        }
    })
    .await;
    let rest = serde_json::to_string(&rest(count)).expect("our own types always serialise");
    let rest = rest
        .strip_prefix(&before)
        .expect("its first field is the list, of which it has nothing");
    text.extend_from_slice(rest.as_bytes());
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
