//! What was done to a fleet, when and where: against it everything is judged that its clients saw.
//!
//! Used by all faults of processes and networks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::accounts::seconds;
use crate::clients::Answer;
use crate::scene::Scene;
use crate::support::chat::{Told, request_id};

/// Something was wrong there, from a moment before until a moment after.
#[derive(Debug)]
struct Strike {
    /// How the places begin that are concerned, as `a/ring`, `a/` or, for all of them, nothing.
    at: String,
    from: Instant,
    /// None while it is wrong.
    until: Option<Instant>,
}

/// Nothing was to be sent to this node, from the acknowledgement until a moment before that was taken back.
#[derive(Debug)]
struct Drained {
    node: &'static str,
    from: Instant,
    until: Option<Instant>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Injected {
    strikes: Vec<Strike>,
    drains: Vec<Drained>,
    healing: Option<Instant>,
    /// The longest of each time that was measured, in order of their first.
    times: Vec<(&'static str, Duration)>,
}

impl Injected {
    /// From this moment on something is wrong at these places. Gives the moment.
    pub fn strike(&mut self, at: &str) -> Instant {
        let from = Instant::now();
        self.strikes.push(Strike {
            at: at.to_owned(),
            from,
            until: None,
        });
        from
    }

    /// Whatever was wrong is no longer, from this moment on; what came of it may still have to be told.
    pub fn heals(&mut self) -> Instant {
        let now = Instant::now();
        self.healing = Some(now);
        now
    }

    /// When that was.
    pub fn healing(&self) -> Instant {
        self.healing.expect("it was healed")
    }

    /// Nothing of it is left.
    pub fn over(&mut self) {
        for strike in &mut self.strikes {
            strike.until.get_or_insert_with(Instant::now);
        }
    }

    /// The drain of a node was acknowledged at this moment.
    pub fn drained(&mut self, node: &'static str) {
        self.drains.push(Drained {
            node,
            from: Instant::now(),
            until: None,
        });
    }

    /// The drains are about to be taken back.
    pub fn undrained(&mut self) {
        for drained in &mut self.drains {
            drained.until.get_or_insert_with(Instant::now);
        }
    }

    /// Something took so long.
    pub fn took(&mut self, what: &'static str, time: Duration) {
        match self.times.iter_mut().find(|(known, _)| *known == what) {
            Some((_, longest)) => *longest = time.max(*longest),
            None => self.times.push((what, time)),
        }
    }

    /// The times, in words.
    pub fn line(&self) -> String {
        self.times
            .iter()
            .fold(String::new(), |mut line, (what, time)| {
                let _ = write!(line, "; {what} {}", seconds(*time));
                line
            })
    }

    /// Whether anything was wrong where and while a request was answered.
    pub fn touches(&self, told: &Told) -> bool {
        self.strikes.iter().any(|strike| strike.touches(told))
    }

    /// How long after something had gone wrong there a request ended, if anything had.
    pub fn after(&self, told: &Told) -> Option<Duration> {
        let touched = self.strikes.iter().filter(|strike| strike.touches(told));
        touched.map(|strike| told.ended - strike.from).min()
    }

    /// Checks that nothing was sent to a drained node: no client has an answer from there that it asked for later, and no
    /// scripted engine there saw such a request.
    pub fn nothing_reached_the_drained(&self, scene: &Scene, answers: &[Answer]) {
        let begun: BTreeMap<String, &Answer> = (answers.iter())
            .map(|answer| (request_id(answer.id), answer))
            .collect();
        for drained in &self.drains {
            let is_late = |answer: &Answer| {
                let until = drained.until.is_none_or(|until| answer.told.ended < until);
                answer.told.begun >= drained.from && until
            };
            let place = format!("{}/", drained.node);
            for answer in answers.iter().filter(|answer| is_late(answer)) {
                let head = answer.told.head.as_ref();
                let there = head.is_some_and(|head| head.place.starts_with(&place));
                assert!(!there, "{drained:?}: {answer:?}");
            }
            for asked in scene.scripted_of(drained.node).asked() {
                let id = asked.header("x-request-id").unwrap_or_default();
                let answer = begun.get(&id);
                let answer = answer.unwrap_or_else(|| panic!("nobody asked for {id:?}"));
                assert!(!is_late(answer), "{drained:?} was sent {answer:?}");
            }
        }
    }
}

impl Strike {
    fn touches(&self, told: &Told) -> bool {
        let meanwhile =
            told.ended >= self.from && self.until.is_none_or(|until| told.begun <= until);
        // Whoever was refused has tried several places.
        let there = (told.head.as_ref()).is_none_or(|head| head.place.starts_with(&self.at));
        meanwhile && there
    }
}
