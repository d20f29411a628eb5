//! Why a node is as it is: what was asked of it, by whom and since when, and what is wrong with it. A pure function of
//! its view. Called by `list` and `get`.

use super::list::{Entry, Presence};
use crate::commands::output::printable;
use crate::commands::words::{age, requests, stamp, stopwatch};
use crate::types::{DrainState, DrainView, HealthStatus, NodeStatus, NodeView, PoolState, UnixMs};

/// One line for each reason, what weighs most first.
pub(super) fn reasons(entry: &Entry, now: UnixMs) -> Vec<String> {
    let node = &entry.view;
    let mut lines = Vec::new();
    match entry.presence {
        Presence::Departed => {
            lines
                .push("left the fleet; what is asked of it holds again when it returns".to_owned());
        }
        Presence::Gone => return vec!["not registered any more".to_owned()],
        Presence::Registered => lines.extend(silence(node, now)),
    }
    lines.extend(
        node.drain
            .iter()
            .map(|drain| format!("{}: {}", drain_word(drain), drain_line(drain, now))),
    );
    if entry.presence == Presence::Registered {
        lines.extend(health(node));
        lines.extend(pools(node));
    }
    lines
}

/// What its silence means.
fn silence(node: &NodeView, now: UnixMs) -> Option<String> {
    let since = |at: UnixMs| format!("{} ({} ago)", stamp(at), age(now.0.saturating_sub(at.0)));
    match (node.status, node.last_heartbeat_age_ms) {
        (NodeStatus::Offline, Some(ms)) => Some(format!(
            "silent since {} ({} ago)",
            stamp(UnixMs(now.0.saturating_sub(ms))),
            age(ms)
        )),
        (NodeStatus::Offline, None) => Some(format!("silent since {}", since(node.last_heartbeat_ms))),
        (NodeStatus::Registering, _) => Some(format!(
            "registered {}, no heartbeat yet",
            since(node.registered_at_ms)
        )),
        _ if !node.suspect => None,
        (_, None) => Some(
            "suspect: not heard since the control plane started; routed by what was last known of it".to_owned(),
        ),
        (_, Some(ms)) => Some(format!("suspect: silent for {}", age(ms))),
    }
}

fn drain_word(drain: &DrainView) -> &'static str {
    match drain.state {
        DrainState::Draining => "draining",
        DrainState::Drained => "drained",
    }
}

/// Why, by whom, since when, and how far.
fn drain_line(drain: &DrainView, now: UnixMs) -> String {
    let mut parts = vec![
        drain
            .reason
            .as_deref()
            .filter(|reason| !reason.is_empty())
            .map_or("no reason given".to_owned(), printable),
    ];
    if let Some(by) = &drain.requested_by {
        parts.push(format!("by {}", printable(by)));
    }
    parts.push(format!(
        "since {} ({} ago)",
        stamp(drain.started_at_ms),
        age(now.0.saturating_sub(drain.started_at_ms.0))
    ));
    if drain.state == DrainState::Draining {
        parts.push(format!("{} left", requests(drain.in_flight)));
    }
    // Where nothing is left, nothing is cut off.
    if let Some(ms) = drain.remaining_ms.filter(|_| drain.in_flight > 0) {
        parts.push(format!(
            "cut off in {}",
            stopwatch(std::time::Duration::from_millis(ms))
        ));
    }
    if drain.cut > 0 {
        parts.push(format!("{} cut", drain.cut));
    }
    if drain.unverified {
        parts.push("not confirmed by its agent".to_owned());
    }
    parts.join(", ")
}

fn health(node: &NodeView) -> Vec<String> {
    let Some(health) = &node.health else {
        return Vec::new();
    };
    let word = match health.status {
        HealthStatus::Ok => return Vec::new(),
        HealthStatus::Degraded => "degraded",
        HealthStatus::Failed => "failed",
    };
    if health.reasons.is_empty() {
        return vec![format!("{word}: its agent does not say why")];
    }
    health
        .reasons
        .iter()
        .map(|reason| printable(&format!("{word}: {} ({})", reason.message, reason.code)))
        .collect()
}

/// Pools that take no requests, or that say something about themselves.
fn pools(node: &NodeView) -> Vec<String> {
    // What a silent node last said of its pools explains nothing any more.
    if node.status == NodeStatus::Offline {
        return Vec::new();
    }
    node.pool_status
        .iter()
        .map(|pool| &pool.status)
        .filter(|pool| !pool.ready || pool.detail.is_some())
        .map(|pool| {
            let word = match pool.state {
                PoolState::Unknown if !pool.ready => "not ready",
                state => state.as_str(),
            };
            let detail = pool
                .detail
                .as_deref()
                .map_or(String::new(), |detail| format!(": {detail}"));
            printable(&format!("pool {} {word}{detail}", pool.pool_id))
        })
        .collect()
}
