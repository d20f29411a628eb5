//! The engines of a machine with what was read of each last, for whoever listens to the [`Event`]s of their readers.
//!
//! Pure: told what happened, says what is new. An engine has a status before its first reading if something is known of
//! what was there before. Used by the agent, by the HOME profile and for agentless nodes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{PoolId, PoolState, PoolStatus, Sample};

use super::{Engine, Event, Watched};

/// The engines in the order in which they were told, none of which is known until the first event.
#[derive(Debug, Default)]
pub struct Known {
    engines: Option<Vec<KnownEngine>>,
    /// Where each is, by its name.
    places: HashMap<PoolId, usize>,
}

/// An engine, and what it was when it was read last.
#[derive(Debug)]
pub struct KnownEngine {
    /// As it is watched.
    pub watched: Watched,
    /// What was read of it, or of what was there before it; none when nothing was.
    pub status: Option<Arc<PoolStatus>>,
}

/// What an event told.
#[derive(Debug)]
pub enum News {
    /// There are other engines, or others than before.
    Engines {
        /// Their names are not what they were.
        renamed: bool,
    },
    /// An engine was read.
    Reading {
        /// Whose state it is.
        pool_id: PoolId,
        /// What it was before.
        before: Option<Arc<PoolStatus>>,
        /// What it is.
        now: Arc<PoolStatus>,
        /// Its slots, when they could be read.
        sample: Option<Sample>,
    },
}

impl Known {
    /// Something happened. Nothing is new for an engine that is not there.
    pub fn on(&mut self, event: Event) -> Option<News> {
        match event {
            Event::Engines(watched) => Some(self.on_engines(watched)),
            Event::Reading(reading) => {
                let pool_id = reading.status.pool_id.clone();
                let place = *self.places.get(&pool_id)?;
                let known = self.engines.as_mut()?.get_mut(place)?;
                let now = Arc::new(reading.status);
                let before = known.status.replace(Arc::clone(&now));
                Some(News::Reading {
                    pool_id,
                    before,
                    now,
                    sample: reading.sample,
                })
            }
        }
    }

    fn on_engines(&mut self, watched: Vec<Watched>) -> News {
        let before = self.engines.take().unwrap_or_default();
        let read = before
            .iter()
            .filter_map(|known| Some((known.watched.engine.as_ref(), known.status.as_ref()?)));
        let now: Vec<KnownEngine> = watched
            .into_iter()
            .map(|watched| {
                let status = known_before(&watched.engine, read.clone());
                KnownEngine { watched, status }
            })
            .collect();
        let names = now.iter().map(|known| known.watched.engine.pool_id.clone());
        let places: HashMap<PoolId, usize> = names.zip(0..).collect();
        let same = places.len() == self.places.len()
            && places.keys().all(|name| self.places.contains_key(name));
        self.engines = Some(now);
        self.places = places;
        News::Engines { renamed: !same }
    }

    /// The engines.
    pub fn iter(&self) -> impl Iterator<Item = &KnownEngine> {
        self.engines.iter().flatten()
    }

    /// The states of those of which there is one.
    pub fn statuses(&self) -> impl Iterator<Item = &Arc<PoolStatus>> {
        self.iter().filter_map(|known| known.status.as_ref())
    }

    /// Whether it is known which engines there are, and something of each.
    #[must_use]
    pub fn are_all_read(&self) -> bool {
        self.engines.is_some() && self.iter().all(|known| known.status.is_some())
    }
}

/// What is known of an engine before its first reading, from what was read of those that were there before: all of the
/// one at its address, whatever it was called, and of one of its name elsewhere only what it served, so that requests for
/// its models wait for it rather than being told that there is no such model.
fn known_before<'a>(
    engine: &Engine,
    before: impl Iterator<Item = (&'a Engine, &'a Arc<PoolStatus>)> + Clone,
) -> Option<Arc<PoolStatus>> {
    let mut at_its_address = before.clone().filter(|(known, _)| known.url == engine.url);
    if let Some((known, status)) = at_its_address.next() {
        if known.pool_id == engine.pool_id {
            return Some(Arc::clone(status));
        }
        return Some(Arc::new(PoolStatus {
            pool_id: engine.pool_id.clone(),
            ..PoolStatus::clone(status)
        }));
    }
    let mut of_its_name = before.filter(|(known, _)| known.pool_id == engine.pool_id);
    of_its_name.next().map(|(_, status)| {
        Arc::new(PoolStatus {
            ready: false,
            state: PoolState::Loading,
            slots_free: None,
            in_flight: None,
            detail: None,
            ..PoolStatus::clone(status)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{InFlight, Reading};
    use crate::types::HttpUrl;

    fn engines(said: &[(&str, u16)]) -> Event {
        let watched = said.iter().map(|(name, port)| Watched {
            engine: Arc::new(Engine::new(
                PoolId::new(name).expect("a name"),
                HttpUrl::new(&format!("http://127.0.0.1:{port}")).expect("an address"),
            )),
            in_flight: Arc::new(InFlight::default()),
        });
        Event::Engines(watched.collect())
    }

    fn reading(name: &str, state: &str) -> Event {
        let status = serde_json::json!({"pool_id": name, "ready": state == "ready", "state": state, "slots_free": 1,
            "slots_total": 2, "models_available": ["m"], "detail": "a word"});
        Event::Reading(Box::new(Reading {
            status: serde_json::from_value(status).expect("a status"),
            sample: None,
            advice: Vec::new(),
        }))
    }

    /// `NAME STATE` of each, with what it serves; `-` for those of which nothing is known.
    fn shown(known: &Known) -> Vec<String> {
        let each = known.iter().map(|known| {
            let name = &known.watched.engine.pool_id;
            match &known.status {
                None => format!("{name} -"),
                Some(status) => {
                    assert_eq!(*name, status.pool_id);
                    let models = status.models_available.join(",");
                    format!("{name} {} {models}", status.state.as_str())
                }
            }
        });
        each.collect()
    }

    #[test]
    fn nothing_is_read_until_it_is_known_which_engines_there_are_and_each_was() {
        let mut known = Known::default();
        assert!(!known.are_all_read());
        assert!(known.on(reading("a", "ready")).is_none(), "nobody's");
        let news = known.on(engines(&[("b", 2), ("a", 1)]));
        assert!(matches!(news, Some(News::Engines { renamed: true })));
        assert_eq!(shown(&known), ["b -", "a -"], "as they were told");
        known.on(reading("a", "ready"));
        assert!(!known.are_all_read());
        known.on(reading("b", "loading"));
        assert!(known.are_all_read());
        assert_eq!(shown(&known), ["b loading m", "a ready m"]);
        let mut empty = Known::default();
        empty.on(engines(&[]));
        assert!(empty.are_all_read(), "all of none");
    }

    #[test]
    fn a_reading_is_told_with_what_was_known_before_it() {
        let mut known = Known::default();
        known.on(engines(&[("a", 1)]));
        let told = |news| match news {
            Some(News::Reading {
                pool_id,
                before,
                now,
                ..
            }) => (pool_id.to_string(), before.map(|b| b.state), now.state),
            other => panic!("{other:?}"),
        };
        let first = told(known.on(reading("a", "loading")));
        assert_eq!(first, ("a".into(), None, PoolState::Loading));
        let second = told(known.on(reading("a", "ready")));
        assert_eq!(
            second,
            ("a".into(), Some(PoolState::Loading), PoolState::Ready)
        );
    }

    #[test]
    fn an_engine_that_moves_or_gets_another_name_is_known_by_what_was_there() {
        let mut known = Known::default();
        known.on(engines(&[("a", 1), ("b", 2)]));
        known.on(reading("a", "ready"));
        let news = known.on(engines(&[("c", 1), ("b", 2)]));
        assert!(matches!(news, Some(News::Engines { renamed: true })));
        assert_eq!(shown(&known), ["c ready m", "b -"], "another name");
        let news = known.on(engines(&[("c", 3)]));
        assert!(matches!(news, Some(News::Engines { renamed: true })));
        assert_eq!(shown(&known), ["c loading m"], "it moved");
        let moved = known.statuses().next().expect("it is known");
        assert_eq!((moved.slots_free, &moved.detail), (None, &None));
        let news = known.on(engines(&[("c", 4)]));
        assert!(matches!(news, Some(News::Engines { renamed: false })));
    }
}
