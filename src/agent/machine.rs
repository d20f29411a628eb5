//! The life of a node towards its control plane, without a clock, a socket or a thread.
//!
//! Purpose: say which call is due when, from what the calls came to. Invariants: pure (every call is told `now`, and
//! brings its own randomness); one call at a time; the node is never given up for want of a control plane; a node whose
//! name has gone to another process ends itself. Driven by the shell in `agent`.

use crate::types::{DrainOrder, Millis, Mono};

/// First and longest pause after a failed call (contract §4).
const RETRY_FIRST_MS: Millis = 200;
const RETRY_LONGEST_MS: Millis = 7_000;
/// Pause after a refusal that only an operator can end (contract §4).
const UNAUTHORIZED_MS: Millis = 30_000;
/// Heartbeats that are sent early are at least so far apart (contract §1.1).
const EARLY_GAP_MS: Millis = 1_000;
/// Attempts to leave in good order before leaving anyway.
const LEAVE_ATTEMPTS: u32 = 3;

/// A call to the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Say who it is.
    Register,
    /// Say how it is.
    Beat,
    /// Say that it goes.
    Deregister,
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is registered.
    Registered {
        /// How often to beat.
        interval_ms: Millis,
        /// After how long a silence it counts as Offline.
        timeout_ms: Millis,
    },
    /// Its heartbeat was taken.
    Beaten {
        /// How often to beat.
        interval_ms: Millis,
        /// The drain it is under.
        drain: Option<DrainOrder>,
    },
    /// It has left.
    Left,
    /// Nobody answered, or not in a way that says anything.
    Failed,
    /// The token is missing or wrong.
    Unauthorized,
    /// It is not registered (any more).
    Unknown,
    /// Another process is this node now.
    Superseded,
    /// Another machine has this name, for at least so long.
    NameTaken {
        /// What is left of its lease.
        retry_after_ms: Millis,
    },
}

/// Why the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Another process is this node now.
    Superseded,
    /// Another machine has this name and is alive.
    NameTaken,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Make this call.
    Call(Call),
    /// Nothing until then, unless something happens.
    Wait(Mono),
    /// End.
    End(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Registering,
    Up,
    Leaving,
    Ended(End),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    phase: Phase,
    /// When the next call is due.
    due: Mono,
    failures: u32,
    timeout_ms: Millis,
    last_beat: Option<Mono>,
    /// A heartbeat was taken since the node last registered.
    beaten: bool,
    /// The node was registered at least once, so there is something to leave.
    registered: bool,
    /// Another machine has the name; once this has passed and it is still so, the agent ends.
    name_taken_until: Option<Mono>,
    drain: Option<DrainOrder>,
    stopping: bool,
    /// What the node registered is not what it is any more.
    outdated: bool,
    /// Something changed since the last heartbeat was made up.
    untold: bool,
}

impl Machine {
    /// A node that has yet to register.
    #[must_use]
    pub fn new(now: Mono) -> Self {
        Self {
            phase: Phase::Registering,
            due: now,
            failures: 0,
            timeout_ms: Millis::MAX,
            last_beat: None,
            beaten: false,
            registered: false,
            name_taken_until: None,
            drain: None,
            stopping: false,
            outdated: false,
            untold: false,
        }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Mono) -> Next {
        if self.phase == Phase::Up && now.since(self.due) > self.timeout_ms {
            // It slept for longer than a lease: what it is may have changed, and others may have its name.
            self.phase = Phase::Registering;
        }
        let call = match self.phase {
            Phase::Ended(end) => return Next::End(end),
            Phase::Registering => Call::Register,
            // A heartbeat follows every registration, so that a node that keeps changing is heard all the same.
            Phase::Up if self.outdated && self.beaten && !self.stopping => Call::Register,
            Phase::Up => Call::Beat,
            Phase::Leaving => Call::Deregister,
        };
        if now < self.due {
            Next::Wait(self.due)
        } else {
            Next::Call(call)
        }
    }

    /// The drain it is under, as far as it was told.
    #[must_use]
    pub fn drain(&self) -> Option<&DrainOrder> {
        self.drain.as_ref()
    }

    /// Whether the last call reached a control plane that takes it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up && self.failures == 0
    }

    /// Something changed that the control plane is to know before the next heartbeat is due.
    pub fn on_change(&mut self, now: Mono) {
        self.untold = true;
        if self.phase == Phase::Up && self.failures == 0 {
            let earliest = self
                .last_beat
                .map_or(now, |last| last.plus(EARLY_GAP_MS).max(now));
            self.due = self.due.min(earliest);
        }
    }

    /// What it registers is not what it registered: it registers again, as early as it would tell any other change.
    pub fn on_registration_change(&mut self, now: Mono) {
        self.outdated = true;
        self.on_change(now);
    }

    /// A call begins, and tells what the node is at this moment.
    pub fn on_call(&mut self, call: Call) {
        match call {
            Call::Register => self.outdated = false,
            Call::Beat => self.untold = false,
            Call::Deregister => {}
        }
    }

    /// It was told to stop: no new work from now on.
    pub fn on_stop(&mut self, now: Mono) {
        self.stopping = true;
        self.on_change(now);
    }

    /// Nothing runs any more, or the grace is over: it leaves.
    pub fn on_quiet(&mut self, now: Mono) {
        if self.stopping && !matches!(self.phase, Phase::Leaving | Phase::Ended(_)) {
            self.phase = if self.registered {
                Phase::Leaving
            } else {
                Phase::Ended(End::Stopped)
            };
            self.failures = 0;
            self.due = now;
        }
    }

    /// What a call came to. `roll` is a random number, for the jitter of retries.
    pub fn on_outcome(&mut self, now: Mono, call: Call, outcome: Outcome, roll: u32) {
        if call == Call::Deregister {
            self.on_leaving(now, &outcome, roll);
            return;
        }
        if self.phase == Phase::Leaving {
            return;
        }
        if call == Call::Register && self.phase == Phase::Up {
            // It registers again, and stays at that until it is taken.
            self.phase = Phase::Registering;
        }
        match outcome {
            Outcome::Registered {
                interval_ms: _,
                timeout_ms,
            } => {
                self.phase = Phase::Up;
                self.registered = true;
                self.beaten = false;
                self.timeout_ms = timeout_ms;
                self.name_taken_until = None;
                self.due = now;
            }
            Outcome::Beaten { interval_ms, drain } => {
                self.failures = 0;
                self.beaten = true;
                self.last_beat = Some(now);
                self.due = now.plus(interval_ms);
                let news = drain.as_ref().map(|drain| &drain.id)
                    != self.drain.as_ref().map(|drain| &drain.id);
                self.drain = drain;
                if news || self.outdated || self.untold {
                    // The control plane waits for the word that it knows, or does not know yet what the node is now.
                    self.on_change(now);
                }
            }
            Outcome::Left | Outcome::Failed => self.retry(now, roll),
            Outcome::Unauthorized => self.due = now.plus(UNAUTHORIZED_MS),
            Outcome::Unknown if call == Call::Beat && self.beaten => {
                self.phase = Phase::Registering;
                self.beaten = false;
                self.due = now;
            }
            // Unknown right after it registered: two control planes that do not know of each other, perhaps.
            Outcome::Unknown => {
                self.phase = Phase::Registering;
                self.retry(now, roll);
            }
            Outcome::Superseded => self.phase = Phase::Ended(End::Superseded),
            Outcome::NameTaken { retry_after_ms } => match self.name_taken_until {
                Some(until) if now >= until => self.phase = Phase::Ended(End::NameTaken),
                Some(until) => self.due = until,
                None => {
                    let until = now.plus(retry_after_ms);
                    self.name_taken_until = Some(until);
                    self.due = until;
                }
            },
        }
    }

    fn on_leaving(&mut self, now: Mono, outcome: &Outcome, roll: u32) {
        if *outcome == Outcome::Failed && self.failures + 1 < LEAVE_ATTEMPTS {
            self.retry(now, roll);
        } else {
            self.phase = Phase::Ended(End::Stopped);
        }
    }

    /// Between half and all of a pause that doubles.
    fn retry(&mut self, now: Mono, roll: u32) {
        let pause = (RETRY_FIRST_MS << self.failures.min(10)).min(RETRY_LONGEST_MS);
        let jitter = u64::from(roll) * (pause / 2) / u64::from(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        self.due = now.plus(pause / 2 + jitter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(ms)
    }

    fn order(id: &str) -> DrainOrder {
        DrainOrder {
            id: id.into(),
            remaining_ms: None,
            force: false,
        }
    }

    fn registered() -> Outcome {
        Outcome::Registered {
            interval_ms: 10_000,
            timeout_ms: 30_000,
        }
    }

    fn beaten(drain: Option<DrainOrder>) -> Outcome {
        Outcome::Beaten {
            interval_ms: 10_000,
            drain,
        }
    }

    /// Registered at 0, first heartbeat taken at 10.
    fn up() -> Machine {
        let mut m = Machine::new(at(0));
        assert_eq!(m.next(at(0)), Next::Call(Call::Register));
        m.on_outcome(at(5), Call::Register, registered(), 0);
        assert_eq!(
            m.next(at(5)),
            Next::Call(Call::Beat),
            "the first heartbeat follows at once"
        );
        m.on_outcome(at(10), Call::Beat, beaten(None), 0);
        m
    }

    #[test]
    fn heartbeats_follow_the_interval_they_are_told() {
        let mut m = up();
        assert_eq!(m.next(at(10)), Next::Wait(at(10_010)));
        assert_eq!(m.next(at(10_010)), Next::Call(Call::Beat));
    }

    #[test]
    fn a_change_is_told_at_once_but_at_most_once_a_second() {
        let mut m = up();
        m.on_change(at(500));
        assert_eq!(m.next(at(500)), Next::Wait(at(1_010)));
        m.on_change(at(5_000));
        m.on_outcome(at(1_010), Call::Beat, beaten(None), 0);
        m.on_change(at(5_000));
        assert_eq!(m.next(at(5_000)), Next::Call(Call::Beat));
    }

    #[test]
    fn a_change_while_a_heartbeat_is_on_its_way_is_told_by_the_next_one() {
        let mut m = up();
        m.on_change(at(5_000));
        assert_eq!(m.next(at(5_000)), Next::Call(Call::Beat));
        m.on_call(Call::Beat);
        m.on_change(at(5_001));
        m.on_outcome(at(5_010), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(5_010)), Next::Wait(at(6_010)));
        m.on_call(Call::Beat);
        m.on_outcome(at(6_020), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(6_020)), Next::Wait(at(16_020)), "once is enough");
    }

    #[test]
    fn a_node_that_is_not_what_it_registered_registers_again_at_most_once_a_second() {
        let mut m = up();
        m.on_registration_change(at(500));
        assert_eq!(m.next(at(500)), Next::Wait(at(1_010)));
        assert_eq!(m.next(at(1_010)), Next::Call(Call::Register));
        m.on_call(Call::Register);
        m.on_outcome(at(1_020), Call::Register, registered(), 0);
        assert_eq!(m.next(at(1_020)), Next::Call(Call::Beat));
        m.on_call(Call::Beat);
        m.on_outcome(at(1_030), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(1_030)), Next::Wait(at(11_030)), "once is enough");
        m.on_registration_change(at(5_000));
        assert_eq!(m.next(at(5_000)), Next::Call(Call::Register));
    }

    #[test]
    fn a_change_during_a_call_is_registered_after_it() {
        // A heartbeat is on its way.
        let mut m = up();
        assert_eq!(m.next(at(10_010)), Next::Call(Call::Beat));
        m.on_call(Call::Beat);
        m.on_registration_change(at(10_020));
        m.on_outcome(at(10_030), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(10_030)), Next::Wait(at(11_030)));
        assert_eq!(m.next(at(11_030)), Next::Call(Call::Register));
        // So is a registration, which tells what the node was when it began.
        m.on_call(Call::Register);
        m.on_registration_change(at(11_040));
        m.on_outcome(at(11_050), Call::Register, registered(), 0);
        assert_eq!(m.next(at(11_050)), Next::Call(Call::Beat));
        m.on_call(Call::Beat);
        m.on_outcome(at(11_060), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(11_060)), Next::Wait(at(12_060)));
        assert_eq!(m.next(at(12_060)), Next::Call(Call::Register));
    }

    #[test]
    fn a_change_before_the_first_registration_is_told_by_it() {
        let mut m = Machine::new(at(0));
        m.on_registration_change(at(0));
        assert_eq!(m.next(at(0)), Next::Call(Call::Register));
        m.on_call(Call::Register);
        m.on_outcome(at(5), Call::Register, registered(), 0);
        m.on_call(Call::Beat);
        m.on_outcome(at(10), Call::Beat, beaten(None), 0);
        assert_eq!(m.next(at(10)), Next::Wait(at(10_010)));
    }

    #[test]
    fn registering_again_is_tried_until_it_is_taken() {
        let mut m = up();
        m.on_registration_change(at(5_000));
        m.on_call(Call::Register);
        m.on_outcome(at(5_010), Call::Register, Outcome::Failed, u32::MAX);
        assert!(!m.is_up());
        assert_eq!(m.next(at(5_010)), Next::Wait(at(5_210)));
        m.on_registration_change(at(5_100));
        assert_eq!(
            m.next(at(5_100)),
            Next::Wait(at(5_210)),
            "a change does not break into the pause after a failure"
        );
        assert_eq!(m.next(at(5_210)), Next::Call(Call::Register));
        m.on_call(Call::Register);
        m.on_outcome(at(5_220), Call::Register, registered(), 0);
        assert_eq!(m.next(at(5_220)), Next::Call(Call::Beat));
    }

    #[test]
    fn who_stops_does_not_register_again() {
        let mut m = up();
        m.on_stop(at(5_000));
        m.on_registration_change(at(5_000));
        assert_eq!(m.next(at(5_000)), Next::Call(Call::Beat));
    }

    #[test]
    fn a_change_while_it_leaves_is_nobodys_business() {
        let mut m = up();
        m.on_stop(at(5_000));
        m.on_quiet(at(5_000));
        m.on_registration_change(at(5_010));
        assert_eq!(m.next(at(5_010)), Next::Call(Call::Deregister));
    }

    #[test]
    fn retries_double_from_200_ms_to_7_s_with_jitter_between_half_and_all() {
        let pauses = |roll: u32| -> Vec<u64> {
            let mut m = Machine::new(at(0));
            let mut now = at(0);
            (0..8)
                .map(|_| {
                    m.on_outcome(now, Call::Register, Outcome::Failed, roll);
                    let Next::Wait(due) = m.next(now) else {
                        panic!("it pauses")
                    };
                    let pause = due.since(now);
                    now = due;
                    pause
                })
                .collect()
        };
        assert_eq!(
            pauses(u32::MAX),
            [200, 400, 800, 1_600, 3_200, 6_400, 7_000, 7_000]
        );
        assert_eq!(pauses(0), [100, 200, 400, 800, 1_600, 3_200, 3_500, 3_500]);
    }

    #[test]
    fn a_change_does_not_break_into_the_pause_after_a_failure() {
        let mut m = up();
        m.on_outcome(at(10_010), Call::Beat, Outcome::Failed, u32::MAX);
        m.on_change(at(10_020));
        assert_eq!(m.next(at(10_020)), Next::Wait(at(10_210)));
        assert!(!m.is_up());
    }

    #[test]
    fn whoever_is_unknown_registers_again() {
        let mut m = up();
        m.on_outcome(at(10_010), Call::Beat, Outcome::Unknown, 0);
        assert_eq!(m.next(at(10_010)), Next::Call(Call::Register));
    }

    #[test]
    fn whoever_is_unknown_again_right_after_it_registered_pauses_longer_each_time() {
        let mut m = up();
        let mut now = at(10_010);
        m.on_outcome(now, Call::Beat, Outcome::Unknown, u32::MAX);
        for pause in [200, 400, 800] {
            assert_eq!(m.next(now), Next::Call(Call::Register));
            m.on_outcome(now, Call::Register, registered(), u32::MAX);
            assert_eq!(m.next(now), Next::Call(Call::Beat));
            m.on_outcome(now, Call::Beat, Outcome::Unknown, u32::MAX);
            assert_eq!(m.next(now), Next::Wait(now.plus(pause)));
            now = now.plus(pause);
        }
    }

    #[test]
    fn after_a_sleep_longer_than_a_lease_it_registers_again() {
        let mut m = up();
        assert_eq!(m.next(at(40_010)), Next::Call(Call::Beat));
        assert_eq!(m.next(at(40_011)), Next::Call(Call::Register));
    }

    #[test]
    fn another_process_in_its_place_ends_it() {
        let mut m = up();
        m.on_outcome(at(10_010), Call::Beat, Outcome::Superseded, 0);
        assert_eq!(m.next(at(10_010)), Next::End(End::Superseded));
    }

    #[test]
    fn a_taken_name_is_tried_again_once_its_lease_may_have_ended() {
        let taken = Outcome::NameTaken {
            retry_after_ms: 20_000,
        };
        let mut m = Machine::new(at(0));
        m.on_outcome(at(0), Call::Register, taken.clone(), 0);
        assert_eq!(m.next(at(0)), Next::Wait(at(20_000)));
        m.on_outcome(at(20_000), Call::Register, taken.clone(), 0);
        assert_eq!(m.next(at(20_000)), Next::End(End::NameTaken));

        let mut m = Machine::new(at(0));
        m.on_outcome(at(0), Call::Register, taken, 0);
        m.on_outcome(at(20_000), Call::Register, registered(), 0);
        assert_eq!(m.next(at(20_000)), Next::Call(Call::Beat));
    }

    #[test]
    fn a_wrong_token_is_tried_again_every_30_s_for_ever() {
        let mut m = Machine::new(at(0));
        for n in 0..5 {
            m.on_outcome(at(n * 30_000), Call::Register, Outcome::Unauthorized, 0);
            assert_eq!(m.next(at(n * 30_000)), Next::Wait(at((n + 1) * 30_000)));
        }
    }

    #[test]
    fn a_drain_it_learns_of_is_acknowledged_without_waiting_for_the_interval() {
        let mut m = up();
        m.on_call(Call::Beat);
        m.on_outcome(at(10_010), Call::Beat, beaten(Some(order("d1"))), 0);
        assert_eq!(m.drain().map(|d| d.id.as_str()), Some("d1"));
        assert_eq!(m.next(at(10_010)), Next::Wait(at(11_010)));
        m.on_call(Call::Beat);
        m.on_outcome(at(11_010), Call::Beat, beaten(Some(order("d1"))), 0);
        assert_eq!(
            m.next(at(11_010)),
            Next::Wait(at(21_010)),
            "it is no news any more"
        );
    }

    #[test]
    fn a_stop_is_told_at_once_and_the_node_leaves_when_nothing_runs() {
        let mut m = up();
        m.on_quiet(at(100));
        assert_eq!(
            m.next(at(100)),
            Next::Wait(at(10_010)),
            "quiet means nothing without a stop"
        );
        m.on_stop(at(5_000));
        assert_eq!(
            m.next(at(5_000)),
            Next::Call(Call::Beat),
            "the gateway is to know"
        );
        m.on_outcome(at(5_010), Call::Beat, beaten(None), 0);
        m.on_quiet(at(6_000));
        assert_eq!(m.next(at(6_000)), Next::Call(Call::Deregister));
        m.on_outcome(at(6_000), Call::Deregister, Outcome::Failed, 0);
        assert_eq!(m.next(at(6_100)), Next::Call(Call::Deregister));
        m.on_outcome(at(6_110), Call::Deregister, Outcome::Left, 0);
        assert_eq!(m.next(at(6_110)), Next::End(End::Stopped));
    }

    #[test]
    fn a_node_that_never_registered_has_nothing_to_leave() {
        let mut m = Machine::new(at(0));
        m.on_outcome(at(0), Call::Register, Outcome::Failed, 0);
        m.on_stop(at(10));
        m.on_quiet(at(10));
        assert_eq!(m.next(at(10)), Next::End(End::Stopped));
    }

    #[test]
    fn it_leaves_even_if_nobody_answers() {
        let mut m = up();
        m.on_stop(at(100));
        m.on_quiet(at(100));
        for _ in 0..3 {
            m.on_outcome(at(100), Call::Deregister, Outcome::Failed, 0);
        }
        assert_eq!(m.next(at(100)), Next::End(End::Stopped));
    }
}
