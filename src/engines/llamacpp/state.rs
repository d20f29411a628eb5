//! One engine, as its answers show it. Pure: told what was asked and answered, says what to ask next, and at last what
//! the engine is.
//!
//! Measured (build 7e4c0a9): while it loads everything is a 503; `/health` answers within 10 ms whatever the engine
//! does, with sixty requests waiting and forty connections idling too; `/slots` and `/metrics` may be off (501, 403), are
//! late while a prompt is processed, wake a sleeping server (in 10 ms, and then its model is loaded again), and begin its
//! idle time anew: asked every second, one with `--sleep-idle-seconds 3` never slept. `/health`, `/props` and `/v1/models`
//! do neither: with all three asked every second it slept after three. Nothing it answers tells whether it was started so.
//! With a key, `/props`, `/slots` and `/metrics` are 401 without it, `/health` and `/v1/models` are not.

use crate::types::{Declared, Millis, Mono, PoolState};

use super::answers::{Answer, Failure, Models, Props, Slot};

/// `/health` silent for so many rounds is unreachable (contract §4).
const SILENT_ROUNDS: u32 = 3;
/// Models are asked for at least so often, whatever `/props` says: a router of another build may change them unseen.
const DESCRIBED_FOR: Millis = 30_000;
/// An engine that has idled for so long is asked for its slots more and more seldom, so that one that falls asleep can:
/// whenever half of the time for which it has idled has passed. One with `--sleep-idle-seconds` of at most
/// [`SELDOM_AT_MOST`] is asleep after three times that long at the latest, and what is sent past orchd is noticed after half
/// of the time in which nothing was.
const SELDOM_AFTER: Millis = 60_000;
/// The longest time for which an engine is not asked for its slots, unless it is known to fall asleep.
const SELDOM_AT_MOST: Millis = 600_000;
/// A slot with less context surprises those who gave `-c` once for all: a system prompt and a page of text fill it.
const SMALL_CONTEXT: u64 = 4_096;

/// What an engine can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Health,
    Props,
    Models,
    Slots,
    Metrics,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    Health(Answer<()>),
    Props(Answer<Box<Props>>),
    Models(Answer<Models>),
    Slots(Answer<Vec<Slot>>),
    /// Requests in progress.
    Metrics(Answer<u32>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Ask(Question),
    Done(Verdict),
}

/// What the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub state: PoolState,
    /// A sentence about it.
    pub detail: Option<String>,
    /// Slots that work; none when that could not be read.
    pub busy: Option<u32>,
}

/// What an engine said of itself when it was last asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Description {
    pub models: Vec<String>,
    pub version: Option<String>,
    pub slots_total: Option<u32>,
    pub n_ctx: Option<u64>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct State {
    pub description: Description,
    /// Whether the models stem from the engine, and from the one that answers now.
    described: Option<Mono>,
    /// Of `/props`, what tells that it may serve something else now.
    props: Option<Props>,
    silent: u32,
    last: PoolState,
    /// A key is shown to it.
    has_key: bool,
    /// Whoever started it said that it falls asleep when nothing is asked of it.
    declared_to_sleep: bool,
    /// It is known to do that.
    sleeps: bool,
    /// It tells whether it sleeps, so that it might one day.
    may_sleep: bool,
    /// In this round: when it began, and whether this process has work there.
    now: Mono,
    works: bool,
    /// What it said last.
    asleep: bool,
    /// Since when nothing was seen to work there; `None` when something was at the last look.
    idle_since: Option<Mono>,
    /// When it was asked last what it works on.
    looked: Mono,
}

impl State {
    /// An engine of which only what was declared is known. `sleeps` says that it was started to fall asleep, `has_key` that
    /// it is shown a key.
    pub fn new(declared: &Declared, sleeps: bool, has_key: bool) -> Self {
        Self {
            description: Description {
                models: declared.models.clone(),
                version: declared.engine_version.clone(),
                slots_total: declared.slots_total,
                n_ctx: None,
            },
            described: None,
            props: None,
            silent: 0,
            last: PoolState::Unknown,
            has_key,
            declared_to_sleep: sleeps,
            sleeps,
            may_sleep: false,
            now: Mono(0),
            works: false,
            asleep: false,
            idle_since: None,
            looked: Mono(0),
        }
    }

    /// Whether the last round heard nothing: the next one is due at once.
    pub fn is_silent(&self) -> bool {
        self.silent > 0 && self.silent < SILENT_ROUNDS
    }

    /// A round begins. `works` says whether this process has requests there.
    pub fn begin(&mut self, now: Mono, works: bool) -> Step {
        self.now = now;
        self.works = works;
        Step::Ask(Question::Health)
    }

    /// An answer to what was asked.
    pub fn on(&mut self, heard: Heard) -> Step {
        let step = match heard {
            Heard::Health(answer) => self.on_health(answer),
            Heard::Props(answer) => self.on_props(answer),
            Heard::Models(answer) => self.on_models(answer),
            Heard::Slots(answer) => self.on_slots(answer),
            Heard::Metrics(answer) => self.on_metrics(answer),
        };
        match &step {
            Step::Ask(Question::Slots | Question::Metrics) => self.looked = self.now,
            Step::Ask(_) => {}
            Step::Done(verdict) => self.keep(verdict),
        }
        step
    }

    /// A round has ended.
    fn keep(&mut self, verdict: &Verdict) {
        self.last = verdict.state;
        if matches!(
            verdict.state,
            PoolState::Loading | PoolState::Unreachable | PoolState::Misconfigured
        ) {
            // What comes back may be another one.
            self.described = None;
        }
        match (verdict.state, verdict.busy) {
            (_, Some(0)) if !self.works => {
                self.idle_since.get_or_insert(self.now);
            }
            // Not looked at, for it idles.
            (PoolState::Ready, None) if !self.works => {}
            _ => self.idle_since = None,
        }
    }

    fn on_health(&mut self, answer: Answer<()>) -> Step {
        match answer {
            Ok(()) => {
                self.silent = 0;
                Step::Ask(Question::Props)
            }
            Err(Failure::Late) => self.on_silence("it does not answer".to_owned()),
            Err(Failure::Broken(why)) => self.on_silence(why),
            Err(Failure::Status(503)) => {
                self.silent = 0;
                done(PoolState::Loading)
            }
            Err(Failure::Status(status)) => {
                let why = format!("/health answers {status}; is this a llama-server?");
                because(PoolState::Misconfigured, why)
            }
            Err(Failure::Refused(why)) => {
                self.silent = 0;
                // Its process is gone, and with it what was learned of it.
                self.sleeps = self.declared_to_sleep;
                self.asleep = false;
                because(PoolState::Unreachable, why)
            }
            Err(Failure::Strange(why)) => because(PoolState::Misconfigured, why),
        }
    }

    /// An engine that was good a moment ago may be slow this once; one that never answered is not there.
    fn on_silence(&mut self, why: String) -> Step {
        self.silent = self.silent.saturating_add(1);
        let held = match self.last {
            PoolState::Ready | PoolState::Busy | PoolState::Sleeping => PoolState::Busy,
            PoolState::Loading => PoolState::Loading,
            _ => PoolState::Unreachable,
        };
        if held != PoolState::Unreachable && self.silent < SILENT_ROUNDS {
            because(held, "it answers late".to_owned())
        } else {
            because(PoolState::Unreachable, why)
        }
    }

    fn on_props(&mut self, answer: Answer<Box<Props>>) -> Step {
        match answer {
            Ok(props) => {
                let slept = self.asleep;
                self.asleep = props.is_sleeping.unwrap_or(false);
                self.may_sleep = props.is_sleeping.is_some();
                // Seen to sleep once, it will again. Woken, it was by somebody who wants something.
                self.sleeps |= self.asleep;
                if slept && !self.asleep {
                    self.idle_since = None;
                }
                self.take(*props);
            }
            Err(Failure::Status(503)) => return done(PoolState::Loading),
            Err(Failure::Status(401 | 403)) => return self.wants_key(),
            Err(Failure::Refused(why)) => return because(PoolState::Unreachable, why),
            // `/slots` would be no sooner.
            Err(Failure::Late) if !self.asleep && !self.description.models.is_empty() => {
                return because(PoolState::Busy, "/props answers late".to_owned());
            }
            // Not told: a sleeper still counts as one, since asking it for its slots would wake it.
            Err(_) => {}
        }
        let stale = self
            .described
            .is_none_or(|at| self.now.since(at) >= DESCRIBED_FOR);
        if stale {
            Step::Ask(Question::Models)
        } else {
            self.load()
        }
    }

    /// Takes what it says of itself; something new means that the models may be others.
    fn take(&mut self, props: Props) {
        let described = Props {
            is_sleeping: None,
            ..props
        };
        if self.props.as_ref() != Some(&described) {
            self.described = None;
        }
        let description = &mut self.description;
        if described.build_info.is_some() {
            description.version.clone_from(&described.build_info);
        }
        let told = described.total_slots.filter(|&slots| slots > 0);
        description.slots_total = told.or(description.slots_total);
        let n_ctx = described.default_generation_settings.n_ctx;
        description.n_ctx = n_ctx.or(description.n_ctx);
        self.props = Some(described);
    }

    fn on_models(&mut self, answer: Answer<Models>) -> Step {
        match answer {
            Ok(models) => {
                self.description.models = models.listed();
                self.described = Some(self.now);
                if self.description.models.is_empty() {
                    let why = "/v1/models names no model; is this a llama-server?";
                    return because(PoolState::Misconfigured, why.to_owned());
                }
            }
            Err(Failure::Status(503)) => return done(PoolState::Loading),
            Err(Failure::Status(401 | 403)) => return self.wants_key(),
            Err(Failure::Status(status)) => {
                let why = format!(
                    "/v1/models answers {status}: give the address of a llama-server, without /v1"
                );
                return because(PoolState::Misconfigured, why);
            }
            Err(Failure::Strange(why)) => return because(PoolState::Misconfigured, why),
            Err(Failure::Refused(why)) => return because(PoolState::Unreachable, why),
            Err(Failure::Broken(_) | Failure::Late) if self.description.models.is_empty() => {
                let why = "it does not say which models it serves: /v1/models answers late";
                return because(PoolState::Unreachable, why.to_owned());
            }
            Err(Failure::Broken(_) | Failure::Late) => {}
        }
        self.load()
    }

    /// How much it works.
    fn load(&mut self) -> Step {
        if self.asleep {
            return with(PoolState::Sleeping, 0);
        }
        if let Some(idle_since) = self.idle_since
            && !self.works
        {
            // Asked for its slots again and again, it would never fall asleep.
            if self.sleeps {
                return because(
                    PoolState::Ready,
                    "it may fall asleep: work sent past orchd is not looked for".to_owned(),
                );
            }
            let idle = self.now.since(idle_since);
            let seldom = (idle / 2).min(SELDOM_AT_MOST);
            if self.may_sleep && idle >= SELDOM_AFTER && self.now.since(self.looked) < seldom {
                return done(PoolState::Ready);
            }
        }
        if self.told(|props| props.endpoint_slots) == Some(false) {
            return self.without_slots();
        }
        Step::Ask(Question::Slots)
    }

    fn told(&self, field: impl Fn(&Props) -> Option<bool>) -> Option<bool> {
        self.props.as_ref().and_then(field)
    }

    fn on_slots(&mut self, answer: Answer<Vec<Slot>>) -> Step {
        match answer {
            Ok(slots) => {
                let busy = slots.iter().filter(|slot| slot.is_processing).count();
                let total = u32::try_from(slots.len()).unwrap_or(u32::MAX);
                self.description.slots_total = Some(total.max(1));
                self.with_load(u32::try_from(busy).unwrap_or(u32::MAX))
            }
            Err(Failure::Late) => because(PoolState::Busy, "/slots answers late".to_owned()),
            Err(Failure::Broken(why)) => because(PoolState::Busy, why),
            Err(Failure::Status(503)) => done(PoolState::Loading),
            Err(Failure::Status(401)) => self.wants_key(),
            Err(Failure::Status(_)) => self.without_slots(),
            Err(Failure::Refused(why)) => because(PoolState::Unreachable, why),
            Err(Failure::Strange(why)) => because(PoolState::Ready, why),
        }
    }

    fn without_slots(&self) -> Step {
        if self.told(|props| props.endpoint_metrics) == Some(false) {
            return because(PoolState::Ready, SLOTS_OFF.to_owned());
        }
        Step::Ask(Question::Metrics)
    }

    fn on_metrics(&mut self, answer: Answer<u32>) -> Step {
        match answer {
            Ok(processing) => self.with_load(processing),
            Err(Failure::Late) => because(PoolState::Busy, "/metrics answers late".to_owned()),
            Err(Failure::Refused(why)) => because(PoolState::Unreachable, why),
            Err(_) => because(PoolState::Ready, SLOTS_OFF.to_owned()),
        }
    }

    fn with_load(&self, busy: u32) -> Step {
        let total = self.description.slots_total.unwrap_or(1);
        let state = if busy >= total {
            PoolState::Busy
        } else {
            PoolState::Ready
        };
        with(state, busy.min(total))
    }

    fn wants_key(&self) -> Step {
        let why = if self.has_key {
            "it refuses the key that is shown to it: the file named as api_key_file in its handoff file must hold one of \
             its keys (--api-key)"
        } else {
            "it wants a key (--api-key): name the file that holds it as api_key_file in the engine's handoff file"
        };
        because(PoolState::Misconfigured, why.to_owned())
    }

    /// What of its configuration costs its users something.
    pub fn advice(&self) -> Vec<String> {
        let Some(props) = &self.props else {
            return Vec::new();
        };
        let mut advice = Vec::new();
        let (slots, n_ctx) = (self.description.slots_total, self.description.n_ctx);
        if slots == Some(1) {
            advice.push(
                "it has one slot and serves one request at a time, all others wait: start llama-server with -np 4, and with \
                 four times the -c, since slots share the context"
                    .to_owned(),
            );
        }
        if let (Some(slots @ 2..), Some(n_ctx @ 1..SMALL_CONTEXT)) = (slots, n_ctx) {
            advice.push(format!(
                "each of its {slots} slots has a context of {n_ctx} tokens, because -c is divided by -np: longer requests are \
                 refused; give llama-server a larger -c, such as {}, or a smaller -np",
                u64::from(slots) * 2 * SMALL_CONTEXT
            ));
        }
        if props.endpoint_slots == Some(false) {
            advice.push(
                "/slots is off: orchd cannot see each slot; start llama-server without --no-slots"
                    .to_owned(),
            );
        }
        if props.endpoint_metrics == Some(false) {
            let loss = if props.endpoint_slots == Some(false) {
                "work sent past orchd is not seen, and its slots are promised twice"
            } else {
                "nobody sees its tokens per second and what waits inside it"
            };
            advice.push(format!(
                "/metrics is off: {loss}; start llama-server with --metrics"
            ));
        }
        advice
    }
}

const SLOTS_OFF: &str = "/slots and /metrics are off: work sent past orchd is not seen";

fn done(state: PoolState) -> Step {
    Step::Done(Verdict {
        state,
        detail: None,
        busy: None,
    })
}

fn with(state: PoolState, busy: u32) -> Step {
    Step::Done(Verdict {
        state,
        detail: None,
        busy: Some(busy),
    })
}

fn because(state: PoolState, why: String) -> Step {
    Step::Done(Verdict {
        state,
        detail: Some(why),
        busy: None,
    })
}

#[cfg(test)]
mod tests;
