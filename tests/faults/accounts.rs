//! The account at the end: every client against what the control plane says of its request, request by request, and
//! everything at rest.
//!
//! - Every client got a complete answer or a clear error: of an error in-band or as the answer, the code is one that this
//!   fault may bring. A connection that breaks off is one when the control plane itself is killed, and one that is refused when it is
//!   away; at no other time.
//! - The log of the control plane has one line for each request, with the status and the outcome that the client saw.
//! - `/metrics` counts as many answers of each status as clients got, nobody who left, and as many retries as the log
//!   has. The counters begin anew with the process: they are held against those whom its last life answered.
//! - At the end nothing runs, waits or is kept in quarantine, at the control plane and at every agent.
//!
//! Used by all faults of processes and networks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::clients::Answer;
use crate::injected::Injected;
use crate::scene::{SOON, Scene};
use crate::support::chat::{End, request_id};
use crate::support::readings::Metrics;
use crate::support::{eventually, http};

/// What clients saw, in figures.
#[derive(Debug, Default)]
pub struct Figures {
    requests: usize,
    whole: usize,
    /// How many were told an error, by its code.
    told: BTreeMap<String, usize>,
    /// Connections that broke off with the control plane, and those that found none.
    cut: usize,
    unreachable: usize,
    retries: u64,
    /// The longest time between two events of a stream where nothing was wrong.
    gap: Duration,
    /// How long after something broke the last stream was told.
    pub told_after: Duration,
    /// The same of those who were refused, each after all its attempts.
    refused_after: Duration,
}

impl Figures {
    /// Whether anybody was told an error, or was tried again.
    pub fn felt(&self) -> bool {
        !self.told.is_empty() || self.retries > 0
    }

    /// In words.
    pub fn line(&self) -> String {
        let mut line = format!("{} requests, {} whole", self.requests, self.whole);
        for (code, count) in &self.told {
            let _ = write!(line, ", {count} told {code}");
        }
        if !self.told.is_empty() {
            let last = self.told_after.max(self.refused_after);
            let _ = write!(line, " within {}", seconds(last));
        }
        for (count, what) in [(self.cut, "cut"), (self.unreachable, "found nobody")] {
            if count > 0 {
                let _ = write!(line, ", {count} {what}");
            }
        }
        let gap = seconds(self.gap);
        let _ = write!(
            line,
            "; {} retries; longest gap elsewhere {gap}",
            self.retries
        );
        line
    }
}

/// A time, as it is shown.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// One line of the access log.
struct Line {
    /// Where in the log it is.
    at: usize,
    status: Option<u16>,
    outcome: String,
    attempts: u64,
}

/// The lines of the access log by the name of the request.
fn lines(log: &str) -> BTreeMap<String, Line> {
    let mut lines = BTreeMap::new();
    let mut at = 0;
    for text in log.split_inclusive('\n') {
        if text.contains(" INFO request id=") {
            let field = |name: &str| {
                let mut words = text.split_whitespace();
                words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            let number = |name: &str| field(name).and_then(|value| value.parse().ok());
            let line = Line {
                at,
                status: number("status").and_then(|status: u64| u16::try_from(status).ok()),
                outcome: field("outcome").expect("every line has one").to_owned(),
                // Of nearly all there is one, which is not told; a refusal may have none.
                attempts: number("attempts").unwrap_or(1).max(1),
            };
            let id = field("id").expect("every line has one").to_owned();
            let twice = lines.insert(id, line);
            assert!(twice.is_none(), "told of twice: {text}");
        }
        at += text.len();
    }
    lines
}

/// The status that a client saw.
fn status(end: &End) -> Option<u16> {
    match end {
        End::Whole | End::InBand(_) => Some(200),
        End::Refused { status, .. } => Some(*status),
        End::Unreachable | End::Broken(_) | End::Failed(_) => None,
    }
}

/// Checks all of it: what clients were told, with these codes as errors that may be told, against the log and `/metrics`.
/// Nobody asks any more.
pub fn settle(scene: &Scene, answers: &[Answer], injected: &Injected, codes: &[&str]) -> Figures {
    at_rest(scene);
    let (lines, _) = eventually(SOON, "the log tells of every request", || {
        let lines = lines(&scene.plane.log());
        let untold = |answer: &&Answer| {
            let is_known = lines.contains_key(&request_id(answer.id));
            !is_known && !may_be_untold(scene, answer)
        };
        match answers.iter().find(untold) {
            None => Ok(lines),
            Some(answer) => Err(format!("nothing is known of {answer:?}")),
        }
    });
    let mut figures = Figures {
        requests: answers.len(),
        retries: lines.values().map(|line| line.attempts - 1).sum(),
        ..Figures::default()
    };
    for answer in answers {
        let told = &answer.told;
        match &told.end {
            End::Whole => {
                figures.whole += 1;
                if told.is_stream && !injected.touches(told) {
                    figures.gap = figures.gap.max(told.gap);
                }
            }
            End::InBand(code) | End::Refused { code, .. } => {
                assert!(codes.contains(&code.as_str()), "not of this: {answer:?}");
                *figures.told.entry(code.clone()).or_default() += 1;
                let after = injected.after(told);
                let after = after.unwrap_or_else(|| panic!("nothing was wrong: {answer:?}"));
                let longest = match told.end {
                    End::InBand(_) => &mut figures.told_after,
                    _ => &mut figures.refused_after,
                };
                *longest = after.max(*longest);
            }
            End::Broken(_) => {
                let killed = outage(scene, answer) == Some(true);
                assert!(killed, "for no reason: {answer:?}");
                figures.cut += 1;
            }
            End::Unreachable => {
                assert!(outage(scene, answer).is_some(), "for no reason: {answer:?}");
                figures.unreachable += 1;
            }
            End::Failed(_) => panic!("neither an answer nor an error: {answer:?}"),
        }
        if let Some(line) = lines.get(&request_id(answer.id)) {
            is_told_of(answer, line);
        }
    }
    let others = lines.len() - lines.keys().filter(|id| id.starts_with("fault-")).count();
    assert_eq!(others, 0, "somebody else asked");
    metrics_agree(scene, answers, &lines);
    figures
}

/// Whether the control plane was away while this request was under way, and if so, whether it was killed.
fn outage(scene: &Scene, answer: &Answer) -> Option<bool> {
    let told = &answer.told;
    let mut all = scene.outages.iter();
    let met = all.find(|outage| told.begun <= outage.until && told.ended >= outage.from);
    met.map(|outage| outage.killed)
}

/// Whether the log may know nothing of this request: it never came, or a control plane that was killed says no more.
fn may_be_untold(scene: &Scene, answer: &Answer) -> bool {
    matches!(answer.told.end, End::Unreachable | End::Broken(_))
        || outage(scene, answer) == Some(true)
}

/// Checks that the log says of a request what its client saw.
fn is_told_of(answer: &Answer, line: &Line) {
    let says = (line.status, line.outcome.as_str());
    let is_right = match &answer.told.end {
        End::Whole => says == (Some(200), "ok"),
        End::InBand(code) => says == (Some(200), code.as_str()),
        End::Refused { status, code, .. } => {
            says.0 == Some(*status) && [code.as_str(), "engine_error"].contains(&says.1)
        }
        End::Unreachable => false,
        End::Broken(_) | End::Failed(_) => true,
    };
    assert!(is_right, "the log says {says:?} of {answer:?}");
}

/// Checks that `/metrics` has counted what clients saw.
fn metrics_agree(scene: &Scene, answers: &[Answer], lines: &BTreeMap<String, Line>) {
    let last = scene.outages.last();
    let in_last = |line: &Line| last.is_none_or(|outage| line.at >= outage.log);
    let mut seen: BTreeMap<u16, u64> = BTreeMap::new();
    for answer in answers {
        let line = lines.get(&request_id(answer.id));
        let certainly = last.is_none_or(|outage| answer.told.begun > outage.until);
        if certainly || line.is_some_and(in_last) {
            // One that broke off was counted with the status that its client may not have seen.
            let status = status(&answer.told.end).or(line.and_then(|line| line.status));
            if let Some(status) = status {
                *seen.entry(status).or_default() += 1;
            }
        }
    }
    let metrics = Metrics::read(scene.plane.address);
    let name = "orchd_gateway_requests_total";
    let mut all = 0.0;
    for (status, count) in &seen {
        let counted = metrics.sum(name, &format!("code=\"{status}\""));
        assert_eq!(counted, *count as f64, "answers of {status}");
        all += counted;
    }
    assert_eq!(metrics.total(name), all, "answers that nobody saw");
    assert_eq!(metrics.total("orchd_gateway_cancelled_total"), 0.0);
    let retries = lines.values().filter(|line| in_last(line));
    let retries: u64 = retries.map(|line| line.attempts - 1).sum();
    let counted = metrics.total("orchd_gateway_retries_total");
    assert_eq!(counted, retries as f64, "retries");
}

/// Waits until nothing is left of any request, anywhere.
fn at_rest(scene: &Scene) {
    eventually(SOON, "every permit is back", || {
        Metrics::read(scene.plane.address).at_rest()?;
        let pools = http::get_json(scene.plane.address, "/v2/pools");
        for pool in pools["pools"].as_array().expect("a list") {
            if pool["running"] != 0 || pool["waiting"] != 0 {
                return Err(pool.to_string());
            }
        }
        for agent in &scene.agents {
            let left = Metrics::read(agent.address).total("orchd_gateway_in_flight");
            if left != 0.0 {
                return Err(format!("{left} at an agent: {}", agent.address));
            }
        }
        for (at, engine) in scene.scripted.iter().enumerate() {
            if engine.busy() > 0 {
                return Err(format!("{} at scripted engine {at}", engine.busy()));
            }
        }
        scene.engines.iter().try_for_each(|engine| engine.idle())
    });
}
