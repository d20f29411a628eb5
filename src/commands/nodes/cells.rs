//! What the tables say of one node, cell by cell: pure functions of its view. Called by `list`, `get` and `watch`.

use std::collections::BTreeSet;

use super::list::{Entry, Presence};
use crate::commands::output::{Cells, Tone};
use crate::commands::words::{NOTHING, age, or_nothing, size};
use crate::types::{DrainState, Gpu, HealthStatus, NodeStatus, NodeView, PoolStatusView, UnixMs};

pub(super) fn row(entry: &Entry, now: UnixMs, wide: bool) -> Cells {
    let node = &entry.view;
    let plain = |text: String| (text, Tone::Plain);
    let labels: Vec<String> = node
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    vec![
        plain(node.node_id.to_string()),
        status(entry),
        plain(gpus(&node.capabilities.gpus)),
        plain(vram_free(node)),
        plain(pools(node)),
        plain(slots(node, &node.pool_status)),
        plain(models(node, wide)),
        plain(
            node.last_heartbeat_age_ms
                .map_or(NOTHING.to_owned(), |ms| format!("{} ago", age(ms))),
        ),
        plain(age(now.0.saturating_sub(node.registered_at_ms.0))),
        plain(node.version.clone().unwrap_or(NOTHING.to_owned())),
        plain(
            node.address
                .as_ref()
                .map_or(NOTHING.to_owned(), ToString::to_string),
        ),
        plain(node.machine_id.clone()),
        plain(if labels.is_empty() {
            NOTHING.to_owned()
        } else {
            labels.join(",")
        }),
    ]
}

/// Whether what its last heartbeat measured may still be so. Of a node that is Offline it is not told: nobody knows what
/// its engines do now.
pub(super) fn is_heard(node: &NodeView) -> bool {
    node.status != NodeStatus::Offline
}

/// The one word, and what it hides.
pub(super) fn status(entry: &Entry) -> (String, Tone) {
    let node = &entry.view;
    let drained = node
        .drain
        .as_ref()
        .map(|drain| drain.state == DrainState::Drained);
    let away = match entry.presence {
        Presence::Registered => None,
        Presence::Departed => Some("Departed"),
        Presence::Gone => Some("Gone"),
    };
    let word = away.unwrap_or(node.status.as_str());
    let mut text = match (node.status, drained) {
        (NodeStatus::Draining, Some(true)) if away.is_none() => "Drained".to_owned(),
        (NodeStatus::Draining, _) if away.is_none() => word.to_owned(),
        (_, None) => word.to_owned(),
        (_, Some(true)) => format!("{word},drained"),
        (_, Some(false)) => format!("{word},draining"),
    };
    if away.is_some() {
        return (text, Tone::Warn);
    }
    if node.suspect && node.status != NodeStatus::Offline {
        text.push_str(",suspect");
    }
    let degraded = node
        .health
        .as_ref()
        .is_some_and(|health| health.status == HealthStatus::Degraded);
    if degraded {
        text.push_str(",degraded");
    }
    let tone = match node.status {
        NodeStatus::Offline | NodeStatus::Failed => Tone::Bad,
        NodeStatus::Online if !node.suspect && !degraded => Tone::Good,
        NodeStatus::Online | NodeStatus::Draining | NodeStatus::Registering => Tone::Warn,
    };
    (text, tone)
}

/// `2× H100 80GB HBM3`: equal cards counted, without the maker's name.
pub(super) fn gpus(gpus: &[Gpu]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for gpu in gpus {
        let name = gpu.name.trim();
        let name = name.strip_prefix("NVIDIA ").unwrap_or(name);
        let name = name.strip_prefix("GeForce ").unwrap_or(name);
        let name = if name.is_empty() { "GPU" } else { name };
        match kinds.iter_mut().find(|(kind, _)| *kind == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    let texts: Vec<String> = kinds
        .iter()
        .map(|(name, count)| format!("{count}× {name}"))
        .collect();
    or_nothing(texts.join(", "))
}

/// What the engines report. A pool does not say which GPUs are its own: with more pools than GPUs some share one, and
/// adding up would count the same memory twice, so that the largest figure is shown instead.
fn vram_free(node: &NodeView) -> String {
    let reported = || {
        node.pool_status
            .iter()
            .filter_map(|pool| pool.status.vram_free_bytes)
    };
    if !is_heard(node) {
        return NOTHING.to_owned();
    }
    let bytes = if reported().count() <= node.capabilities.gpus.len() {
        reported().reduce(u64::saturating_add)
    } else {
        reported().max()
    };
    bytes.map_or(NOTHING.to_owned(), size)
}

/// `ready/total`, or `-/total` of a node that is not heard.
fn pools(node: &NodeView) -> String {
    let total = node.pool_status.len();
    if total == 0 {
        return NOTHING.to_owned();
    }
    if !is_heard(node) {
        return format!("{NOTHING}/{total}");
    }
    let ready = node
        .pool_status
        .iter()
        .filter(|pool| pool.status.ready)
        .count();
    format!("{ready}/{total}")
}

/// `busy/total` of these pools of a node: as last reported, and at least what the control plane itself runs there.
/// `-/total` of a node that is not heard.
pub(super) fn slots(node: &NodeView, pools: &[PoolStatusView]) -> String {
    if pools.is_empty() {
        return NOTHING.to_owned();
    }
    let (busy, total) = pools.iter().fold((0u64, 0u64), |(busy, total), pool| {
        let slots = pool.status.slots_total.unwrap_or(1);
        let reported = pool
            .status
            .slots_free
            .map_or(0, |free| slots - free.min(slots));
        let here = reported.max(pool.running).min(slots);
        (busy + u64::from(here), total + u64::from(slots))
    });
    if is_heard(node) {
        format!("{busy}/{total}")
    } else {
        format!("{NOTHING}/{total}")
    }
}

/// The models of all pools; in the narrow table the first one and how many more.
pub(super) fn models(node: &NodeView, wide: bool) -> String {
    let models: BTreeSet<&str> = node
        .pool_status
        .iter()
        .flat_map(|pool| &pool.status.models_available)
        .map(String::as_str)
        .collect();
    let mut all = models.iter();
    match (all.next(), models.len()) {
        (Some(first), 3..) if !wide => format!("{first} +{}", models.len() - 1),
        _ => or_nothing(models.into_iter().collect::<Vec<_>>().join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_gpus_are_counted_without_the_makers_name() {
        let gpu = |name: &str| Gpu {
            name: name.to_owned(),
            ..Gpu::default()
        };
        assert_eq!(gpus(&[]), "-");
        assert_eq!(
            gpus(&[gpu("NVIDIA H100 80GB HBM3"), gpu("NVIDIA H100 80GB HBM3")]),
            "2× H100 80GB HBM3"
        );
        assert_eq!(
            gpus(&[
                gpu("NVIDIA GeForce RTX 4090"),
                gpu("NVIDIA RTX A6000"),
                gpu("")
            ]),
            "1× RTX 4090, 1× RTX A6000, 1× GPU"
        );
    }
}
