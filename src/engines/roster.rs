//! Which engines there are: those that were configured and those of handoff files, each name and each address once.
//!
//! Pure: told what is claimed, says who holds and who is passed over.

use std::collections::HashMap;

use crate::types::{MAX_POOLS, Origin, PoolId};

use super::Engine;

/// Who says that there is an engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The command line or the configuration; by its place there.
    Configured(usize),
    /// A handoff file, by its name in the runtime directory.
    File(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Configured(_) => f.write_str("--engine"),
            Self::File(name) => f.write_str(name),
        }
    }
}

/// What a source says: an engine, or nothing that could be understood, and why.
pub type Claim = (Source, Result<Engine, String>);

/// A source that is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Which.
    pub source: Source,
    /// Why.
    pub why: String,
}

/// The engines, and who holds each name.
#[derive(Debug, Default)]
pub struct Roster {
    holders: HashMap<PoolId, Source>,
}

impl Roster {
    /// The engines of the configuration and of handoff files, in the order of their sources, and the sources that are passed
    /// over.
    ///
    /// Whoever holds a name keeps it for as long as it claims it; what was configured comes before files, files in the
    /// order of their names. An engine that is known to be of no use gives way to one that may be.
    pub fn settle(
        &mut self,
        configured: &[Engine],
        files: Vec<Claim>,
    ) -> (Vec<(Source, Engine)>, Vec<PassedOver>) {
        let mut passed_over = Vec::new();
        let configured = configured.iter().cloned().enumerate();
        let mut engines: Vec<(Source, Engine)> = configured
            .map(|(n, engine)| (Source::Configured(n), engine))
            .collect();
        for (source, claim) in files {
            match claim {
                Ok(engine) => engines.push((source, engine)),
                Err(why) => passed_over.push(PassedOver { source, why }),
            }
        }
        engines.sort_by_cached_key(|(source, engine)| {
            let holds = self.holders.get(&engine.pool_id) == Some(source);
            let configured = matches!(source, Source::Configured(_));
            (!configured, engine.fault.is_some(), !holds, source.clone())
        });
        let mut names: HashMap<PoolId, Source> = HashMap::with_capacity(engines.len());
        let mut addresses: HashMap<Origin, PoolId> = HashMap::with_capacity(engines.len());
        engines.retain(|(source, engine)| {
            let address = engine.url.identity();
            let why = if let Some(holder) = names.get(&engine.pool_id) {
                format!("the pool {} is already that of {holder}", engine.pool_id)
            } else if let Some(pool_id) = addresses.get(&address) {
                let url = &engine.url;
                format!("the engine {url} is already the pool {pool_id}: its slots would be counted twice")
            } else if names.len() == MAX_POOLS {
                format!("a node has at most {MAX_POOLS} pools")
            } else {
                names.insert(engine.pool_id.clone(), source.clone());
                addresses.insert(address, engine.pool_id.clone());
                return true;
            };
            let source = source.clone();
            passed_over.push(PassedOver { source, why });
            false
        });
        engines.sort_by(|(a, _), (b, _)| a.cmp(b));
        passed_over.sort_by(|a, b| a.source.cmp(&b.source));
        self.holders = names;
        (engines, passed_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::Fault;
    use crate::types::{HttpUrl, PoolState};

    fn engine(name: &str, port: u16) -> Engine {
        Engine::new(
            PoolId::new(name).expect("a name"),
            HttpUrl::new(&format!("http://127.0.0.1:{port}")).expect("an address"),
        )
    }

    fn dead(name: &str, port: u16) -> Engine {
        Engine {
            fault: Some(Fault {
                state: PoolState::Unreachable,
                why: "dead".to_owned(),
            }),
            ..engine(name, port)
        }
    }

    fn file(name: &str, engine: Engine) -> Claim {
        (Source::File(name.to_owned()), Ok(engine))
    }

    /// `SOURCE=NAME` of those that hold, and the sources of those that do not.
    fn settle(roster: &mut Roster, files: Vec<Claim>) -> (Vec<String>, Vec<String>) {
        settle_with(roster, &[], files)
    }

    fn settle_with(
        roster: &mut Roster,
        configured: &[Engine],
        files: Vec<Claim>,
    ) -> (Vec<String>, Vec<String>) {
        let (engines, passed_over) = roster.settle(configured, files);
        let engines = engines.iter().map(|(s, e)| format!("{s}={}", e.pool_id));
        let passed_over = passed_over.iter().map(|p| p.source.to_string());
        (engines.collect(), passed_over.collect())
    }

    #[test]
    fn whoever_has_a_name_first_keeps_it_until_it_goes() {
        let mut roster = Roster::default();
        let b = || file("b.json", engine("default", 2));
        let a = || file("a.json", engine("default", 1));
        assert_eq!(settle(&mut roster, vec![b()]).0, ["b.json=default"]);
        let (engines, passed_over) = settle(&mut roster, vec![a(), b()]);
        assert_eq!(engines, ["b.json=default"], "it was there first");
        assert_eq!(passed_over, ["a.json"]);
        assert_eq!(settle(&mut roster, vec![a()]).0, ["a.json=default"]);
        // Rewritten with another address, it is still the one that has the name.
        let moved = file("a.json", engine("default", 3));
        assert_eq!(settle(&mut roster, vec![b(), moved]).0, ["a.json=default"]);
    }

    #[test]
    fn of_several_that_come_at_once_the_configured_one_is_first_and_then_the_first_file() {
        let mut roster = Roster::default();
        let configured = [engine("default", 1)];
        let files = vec![
            file("b.json", engine("x", 2)),
            file("a.json", engine("x", 3)),
            file("c.json", engine("default", 4)),
        ];
        let (engines, passed_over) = settle_with(&mut roster, &configured, files);
        assert_eq!(engines, ["--engine=default", "a.json=x"]);
        assert_eq!(passed_over, ["b.json", "c.json"]);
    }

    #[test]
    fn the_file_of_a_dead_process_does_not_stand_in_the_way_of_a_live_one() {
        let mut roster = Roster::default();
        let stale = || file("a.json", dead("default", 1));
        assert_eq!(settle(&mut roster, vec![stale()]).0, ["a.json=default"]);
        let (engines, passed_over) =
            settle(&mut roster, vec![stale(), file("b.json", engine("new", 1))]);
        assert_eq!(engines, ["b.json=new"], "the same address");
        assert_eq!(passed_over, ["a.json"]);
        let (engines, _) = settle(
            &mut roster,
            vec![stale(), file("c.json", engine("default", 2))],
        );
        assert_eq!(engines, ["c.json=default"], "the same name");
    }

    #[test]
    fn what_cannot_be_understood_is_passed_over_with_its_reason() {
        let claim = (Source::File("a.json".to_owned()), Err("no url".to_owned()));
        let (engines, passed_over) = Roster::default().settle(&[], vec![claim]);
        assert!(engines.is_empty());
        assert_eq!(passed_over[0].why, "no url");
    }

    #[test]
    fn one_engine_under_two_names_of_its_machine_is_one() {
        let elsewhere = Engine {
            url: HttpUrl::new("http://localhost:1").expect("an address"),
            ..engine("b", 1)
        };
        let files = vec![file("b.json", elsewhere)];
        let (engines, passed_over) = Roster::default().settle(&[engine("a", 1)], files);
        assert_eq!(engines.len(), 1, "{engines:?}");
        assert!(
            passed_over[0].why.contains("is already the pool a"),
            "{passed_over:?}"
        );
    }

    #[test]
    fn a_node_has_only_so_many_pools() {
        let claims = (0..MAX_POOLS + 2)
            .map(|n| {
                let port = u16::try_from(n).expect("few") + 1;
                file(&format!("{n:05}.json"), engine(&format!("p{n}"), port))
            })
            .collect();
        let (engines, passed_over) = Roster::default().settle(&[], claims);
        assert_eq!((engines.len(), passed_over.len()), (MAX_POOLS, 2));
        assert!(passed_over[0].why.contains("at most"));
    }
}
