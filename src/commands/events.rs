//! `orchd events`: what happens, one line an event, until interrupted.
//!
//! Invariants: a lost connection is made again for as long as it takes, and goes on after the last event that was shown;
//! when events are missing all the same, stderr says so. Called by `commands::run`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::failure::Exit;
use super::output::{self, Tone, printable};
use super::words::stamp;
use crate::cli::{EventsArgs, EventsFormat};
use crate::client::{Client, ClientError, EventsQuery, Frame};
use crate::types::{Event, EventKind, RESYNC};

/// The first and the longest pause before the connection is made again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Width of the longest type of event.
const KINDS: usize = 15;

pub(super) async fn run(args: EventsArgs, client: Client) -> anyhow::Result<ExitCode> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted.into()),
        result = follow(args, client) => result,
    }
}

async fn follow(args: EventsArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut query = EventsQuery {
        node: args.node,
        after: args.since,
    };
    let mut stream = client.events(&query).await?;
    loop {
        let lost = match stream.next().await {
            Ok(frame) => {
                if let Some(id) = &frame.id {
                    query.after = Some(id.clone());
                }
                if frame.event == RESYNC {
                    output::warning(
                        "events are missing here: the control plane does not know the last one that was shown; read the \
                         lists anew",
                    );
                } else if !output::stream(&line(&frame, args.output))? {
                    return Ok(Exit::Done.into());
                }
                continue;
            }
            Err(lost) => lost,
        };
        output::note(&format!("{lost}; connecting again"));
        let mut pause = PAUSES.0;
        stream = loop {
            sleep(pause).await;
            match client.events(&query).await {
                Ok(stream) => break stream,
                // Something in between may answer while the control plane restarts.
                Err(error) if error.may_pass() || matches!(error, ClientError::NotOrchd { .. }) => {
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(error) => return Err(error.into()),
            }
        };
        output::note("connected again");
    }
}

fn line(frame: &Frame, format: EventsFormat) -> String {
    match format {
        EventsFormat::Json => json(frame),
        EventsFormat::Table => table(frame),
    }
}

/// The event as it travelled, with its id.
fn json(frame: &Frame) -> String {
    let data: Value = serde_json::from_str(&frame.data).unwrap_or(Value::Null);
    let mut object = match data {
        Value::Object(object) => object,
        other => [("data".to_owned(), other)].into_iter().collect(),
    };
    object
        .entry("type")
        .or_insert_with(|| frame.event.clone().into());
    if let Some(id) = &frame.id {
        object.insert("id".to_owned(), id.clone().into());
    }
    format!("{}\n", Value::Object(object))
}

/// Time, type, node, and what changed.
fn table(frame: &Frame) -> String {
    let Ok(event) = serde_json::from_str::<Event>(&frame.data) else {
        // A type that a newer control plane tells.
        return format!(
            "{:20}  {:KINDS$}  {}\n",
            "-",
            printable(&frame.event),
            printable(&frame.data)
        );
    };
    let style = tone(event.kind).style();
    let kind = event.kind.as_str();
    let node = event.node_id.as_ref().map_or("-", |node| node.as_str());
    let text = format!(
        "{}  {style}{kind:KINDS$}{style:#}  {node}  {}",
        stamp(event.at_ms),
        detail(&event)
    );
    format!("{}\n", text.trim_end())
}

fn detail(event: &Event) -> String {
    let change = match (&event.from, &event.to) {
        (Some(from), Some(to)) => Some(format!("{from} -> {to}")),
        (Some(from), None) => Some(format!("was {from}")),
        (None, to) => to.clone(),
    };
    let parts: Vec<String> = event
        .pool_id
        .iter()
        .map(|pool| format!("pool {pool}"))
        .chain(change)
        .chain(event.reason.clone().filter(|reason| !reason.is_empty()))
        .chain(event.by.as_ref().map(|by| format!("by {by}")))
        .collect();
    printable(&parts.join(", "))
}

pub(super) fn tone(kind: EventKind) -> Tone {
    match kind {
        EventKind::NodeOffline | EventKind::NodeFailed | EventKind::FleetHold => Tone::Bad,
        EventKind::NodeSuspect
        | EventKind::NodeDeparted
        | EventKind::DrainStarted
        | EventKind::DrainUpdated
        | EventKind::PoolRemoved => Tone::Warn,
        EventKind::NodeOnline
        | EventKind::DrainDone
        | EventKind::DrainEnded
        | EventKind::FleetRelease => Tone::Good,
        EventKind::NodeRegistered
        | EventKind::NodeUpdated
        | EventKind::PoolAdded
        | EventKind::PoolState => Tone::Plain,
    }
}
