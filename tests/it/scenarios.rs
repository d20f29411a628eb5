//! Rules told as stories: scripts in `tests/scenarios/`, played on the real registry with a clock that they move, and
//! compared with what they said when somebody last read them (`ORCHD_BLESS=1` rewrites).
//!
//! A script is lines of commands; `#` begins a comment, which the golden copy keeps so that it can be read as a story.
//! Commands: `settings timeout=30s …` (once, first), `advance 10s`, `register NODE [machine=M] [instance=I] [announced]`,
//! `beat NODE [instance=I] [seq=N] [health=failed] [ack=N] [pool=STATE]`, `leave NODE [instance=I]`, `forget NODE`,
//! `drain NODE [deadline=10s] [force] [reason=TEXT]`, `undrain NODE`, `running NODE N`, `pause 90s` (the checker stands
//! still), `wall -1h` (somebody sets the clock), `restart [down=1m]`, `show`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use orchd::registry::{Edit, HoldSettings, Intent, Record, Registry, Restored, Settings, Sweep};
use orchd::types::{
    DrainAck, DrainRequest, Health, HealthReason, HealthStatus, HeartbeatRequest, Mono, NodeId,
    Now, PoolStatus, UnixMs, millis, parse_duration,
};

/// A control plane without its shell: what `control` does round the registry, with a clock that stands still.
struct Stage {
    settings: Settings,
    registry: Registry,
    mono: u64,
    wall: i64,
    /// The gateway's count of requests, by node.
    running: BTreeMap<NodeId, u32>,
    drains: u32,
    story: String,
}

/// Arguments of a command: words, and `key=value`.
struct Arguments<'a>(Vec<&'a str>);

impl<'a> Arguments<'a> {
    fn value(&self, key: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }

    fn ms(&self, key: &str) -> Option<u64> {
        self.value(key).map(ms)
    }
}

fn ms(text: &str) -> u64 {
    millis(parse_duration(text).unwrap_or_else(|e| panic!("{e}")))
}

fn node(text: &str) -> NodeId {
    NodeId::new(text).unwrap_or_else(|e| panic!("{text:?} {e}"))
}

impl Stage {
    fn new(arguments: &Arguments<'_>) -> Self {
        let number = |key, default| {
            arguments
                .value(key)
                .map_or(default, |text| text.parse().expect("a number"))
        };
        let node_timeout_ms = arguments.ms("timeout").unwrap_or(30_000);
        let settings = Settings {
            node_timeout_ms,
            restart_grace_ms: arguments.ms("grace").unwrap_or(node_timeout_ms),
            hold: HoldSettings {
                min: number("hold-min", 5),
                percent: number("hold-percent", 30),
                max_ms: arguments.ms("hold-max").unwrap_or(600_000),
            },
        };
        Self {
            settings,
            registry: Registry::new(settings),
            mono: 0,
            wall: 1_790_000_000_000,
            running: BTreeMap::new(),
            drains: 0,
            story: String::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: Mono(self.mono),
            wall: UnixMs(self.wall.unsigned_abs()),
        }
    }

    fn say(&mut self, text: &str) {
        let s = self.mono / 1_000;
        let ms = self.mono % 1_000;
        writeln!(self.story, "  {s}.{ms:03}  {text}").expect("a string takes everything");
    }

    /// Time passes, and everything happens at its time.
    fn advance(&mut self, by: u64) {
        let end = self.mono + by;
        loop {
            let lease = self.registry.next_expiry(self.now()).map(|at| at.0 + 1);
            let deadline = self
                .registry
                .nodes()
                .filter_map(|(_, node)| node.drain.as_ref()?.order(Mono(self.mono)).remaining_ms)
                .filter(|left| *left > 0)
                .map(|left| self.mono + left)
                .min();
            let next = lease.into_iter().chain(deadline).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.mono = next.max(self.mono),
                None => break,
            }
            let before = self.mono;
            self.sweep();
            if self
                .registry
                .next_expiry(self.now())
                .is_some_and(|at| at.0 < before)
            {
                panic!("the next look lies in the past");
            }
        }
        self.mono = end;
        self.sweep();
    }

    fn sweep(&mut self) {
        let now = self.now();
        let Sweep {
            moved,
            held,
            began,
            ended,
        } = self.registry.expire(now);
        if let Some(hold) = began {
            self.say(&format!("fleet hold: {} nodes are silent", hold.nodes));
        }
        if ended.is_some() {
            self.say("fleet hold: ended");
        }
        for (node_id, held) in held {
            self.say(&format!(
                "{node_id}: {}",
                if held { "suspect" } else { "no longer suspect" }
            ));
        }
        for moved in moved {
            self.say(&format!(
                "{}: {} → {}",
                moved.node_id,
                moved.from.as_str(),
                moved.to.as_str()
            ));
        }
        for node_id in self.registry.over(now) {
            let count = self.running.insert(node_id.clone(), 0).unwrap_or(0);
            self.registry.cut(&node_id, count);
            self.say(&format!("{node_id}: {count} requests were ended"));
        }
        let draining: Vec<NodeId> = self.registry.draining().cloned().collect();
        for node_id in draining {
            self.settle(&node_id);
        }
    }

    fn settle(&mut self, node_id: &NodeId) {
        let running = self.running.get(node_id).copied().unwrap_or(0);
        if self.registry.settle(node_id, running) {
            let view = self
                .registry
                .node(node_id)
                .and_then(|node| node.drain.clone())
                .expect("it is draining");
            let word = if view.view(Mono(self.mono), 0).unverified {
                "drained, unverified"
            } else {
                "drained"
            };
            self.say(&format!("{node_id}: {word}"));
        }
    }

    fn order(&mut self, intent: &Intent) {
        let now = self.now();
        match self.registry.decide(now, intent) {
            Ok(change) => {
                let mut written = Vec::new();
                for (what, edit) in [
                    ("record", change.record.is_keep()),
                    ("drain", change.drain.is_keep()),
                ] {
                    if !edit {
                        written.push(what);
                    }
                }
                let gone = matches!(change.record, Edit::Clear);
                self.registry.commit(now, change);
                let text = match written.as_slice() {
                    [] => "nothing to write".to_owned(),
                    written => format!(
                        "written: {}{}",
                        written.join(", "),
                        if gone { " (gone)" } else { "" }
                    ),
                };
                self.say(&text);
                self.settle(intent.node_id());
            }
            Err(refusal) => self.say(&format!("refused: {refusal}")),
        }
    }

    fn play(&mut self, command: &str, arguments: &Arguments<'_>) {
        let subject = arguments.0.first().copied().unwrap_or_default();
        match command {
            "advance" => self.advance(ms(subject)),
            "wall" => {
                let back = subject.strip_prefix('-');
                let by = i64::try_from(ms(back.unwrap_or(subject))).expect("small");
                self.wall += if back.is_some() { -by } else { by };
            }
            "pause" => {
                let gap = ms(subject);
                self.mono += gap;
                self.registry.paused(self.now(), gap);
                self.sweep();
            }
            "running" => {
                let count = arguments.0[1].parse().expect("a number");
                self.running.insert(node(subject), count);
                self.sweep();
            }
            "register" => {
                let body = serde_json::json!({
                    "node_id": subject, "machine_id": arguments.value("machine"),
                    "instance_id": arguments.value("instance"), "address": "http://10.0.0.1:9200",
                    "announced": arguments.has("announced"), "version": arguments.value("version"),
                });
                let request = serde_json::from_value(body).expect("a registration");
                self.order(&Intent::Register(Box::new(request)));
            }
            "beat" => self.beat(subject, arguments),
            "leave" | "forget" => self.order(&Intent::Deregister {
                node_id: node(subject),
                instance_id: arguments.value("instance").map(str::to_owned),
                forget: command == "forget",
            }),
            "drain" => {
                self.drains += 1;
                let request = DrainRequest {
                    reason: arguments.value("reason").map(str::to_owned),
                    deadline_ms: arguments.ms("deadline"),
                    force: arguments.has("force").then_some(true),
                    requested_by: None,
                };
                self.order(&Intent::Drain {
                    node_id: node(subject),
                    request,
                    drain_id: format!("d{}", self.drains),
                    running: self.running.get(&node(subject)).copied().unwrap_or(0),
                });
                self.sweep();
            }
            "undrain" => self.order(&Intent::Undrain {
                node_id: node(subject),
            }),
            "restart" => self.restart(arguments.ms("down").unwrap_or(0)),
            "show" => self.show(),
            other => panic!("there is no command {other:?}"),
        }
    }

    fn beat(&mut self, subject: &str, arguments: &Arguments<'_>) {
        let node_id = node(subject);
        let state = arguments.value("pool").unwrap_or("ready");
        let pool: PoolStatus = serde_json::from_value(serde_json::json!({
            "pool_id": "p", "ready": state == "ready", "state": state, "slots_total": 4, "slots_free": 4,
            "models_available": ["m"],
        }))
        .expect("a pool");
        let drain_id = self
            .registry
            .node(&node_id)
            .and_then(|node| Some(node.drain.as_ref()?.id.clone()));
        let request = HeartbeatRequest {
            timestamp: None,
            pools: vec![pool],
            instance_id: arguments.value("instance").map(str::to_owned),
            seq: arguments
                .value("seq")
                .map(|text| text.parse().expect("a number")),
            health: arguments.value("health").map(|word| Health {
                status: if word == "failed" {
                    HealthStatus::Failed
                } else {
                    HealthStatus::Degraded
                },
                reasons: vec![HealthReason {
                    code: "X".to_owned(),
                    message: "as the script says".to_owned(),
                }],
            }),
            drain_ack: arguments.value("ack").and_then(|text| {
                Some(DrainAck {
                    id: drain_id?,
                    in_flight: text.parse().expect("a number"),
                })
            }),
        };
        match self.registry.beat(self.now(), &node_id, request) {
            Ok(beat) => {
                let node = self.registry.node(&node_id).expect("it beats");
                let told = node
                    .drain
                    .as_ref()
                    .map(|drain| drain.order(Mono(self.mono)));
                let mut text = format!("{node_id}: {}", node.status().as_str());
                if let Some((was, _)) = beat.turned {
                    write!(text, ", was {}", was.as_str()).expect("a string takes everything");
                }
                if !beat.counted {
                    text.push_str(", not counted");
                }
                if let Some(told) = told {
                    write!(text, ", told {}", told.id).expect("a string takes everything");
                    if let Some(left) = told.remaining_ms {
                        write!(text, " with {left} ms left").expect("a string takes everything");
                    }
                }
                self.say(&text);
            }
            Err(refusal) => self.say(&format!("refused: {refusal}")),
        }
        self.settle(&node_id);
    }

    /// The process ends and another one begins with what was written; its clock begins anew.
    fn restart(&mut self, down: u64) {
        let now = Mono(self.mono);
        let kept: Vec<Restored> = self
            .registry
            .nodes()
            .map(|(node_id, node)| Restored {
                node_id: node_id.clone(),
                record: through_json::<Record>(&node.record),
                drain: node
                    .drain
                    .as_ref()
                    .map(|drain| through_json(&drain.as_of(now))),
                observed: through_json(&node.durable()),
            })
            .collect();
        self.mono += down;
        self.running.clear();
        self.registry = Registry::restore(self.settings, self.now(), kept);
    }

    fn show(&mut self) {
        let now = self.now();
        let mut nodes: Vec<_> = self.registry.nodes().collect();
        nodes.sort_by_key(|(node_id, _)| (*node_id).clone());
        let lines: Vec<String> = nodes
            .into_iter()
            .map(|(node_id, node)| {
                let view = node.view(now, self.settings.node_timeout_ms, node_id, |_| 0);
                let mut words = vec![view.status.as_str().to_owned()];
                if node.record.departed {
                    words = vec!["departed".to_owned()];
                }
                for (is, word) in [
                    (view.online, "online"),
                    (view.schedulable, "schedulable"),
                    (view.suspect, "suspect"),
                ] {
                    if is {
                        words.push(word.to_owned());
                    }
                }
                words.push(
                    view.last_heartbeat_age_ms
                        .map_or("unheard".to_owned(), |ms| format!("heard {ms} ms ago")),
                );
                if let Some(drain) = view.drain {
                    let mut text = format!(
                        "drain {} {}",
                        drain.id,
                        if node.drain.as_ref().is_some_and(|d| d.is_done()) {
                            "done"
                        } else {
                            "runs"
                        }
                    );
                    if let Some(left) = drain.remaining_ms {
                        write!(text, " {left} ms left").expect("a string takes everything");
                    }
                    if drain.cut > 0 {
                        write!(text, " cut {}", drain.cut).expect("a string takes everything");
                    }
                    words.push(text);
                }
                format!("{node_id}: {}", words.join(", "))
            })
            .collect();
        if let Some(hold) = self.registry.hold() {
            self.say(&format!(
                "fleet hold: {} nodes, ends in {} ms",
                hold.nodes,
                hold.ends.since(now.mono)
            ));
        }
        if lines.is_empty() {
            self.say("no nodes");
        }
        for line in lines {
            self.say(&line);
        }
    }
}

/// What survives a restart is what is serialised.
fn through_json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("it serialises");
    serde_json::from_str(&text).expect("and back")
}

/// The script with what happened under each of its lines.
fn story(script: &str) -> String {
    let mut stage: Option<Stage> = None;
    let mut told = String::new();
    for line in script.lines() {
        // What happened the last time is written anew.
        if line.starts_with("  ") {
            continue;
        }
        told.push_str(line);
        told.push('\n');
        let command = line.split('#').next().unwrap_or_default();
        let mut words = command.split_whitespace();
        let Some(command) = words.next() else {
            continue;
        };
        let arguments = Arguments(words.collect());
        if command == "settings" {
            stage = Some(Stage::new(&arguments));
            continue;
        }
        let stage = stage.get_or_insert_with(|| Stage::new(&Arguments(Vec::new())));
        stage.play(command, &arguments);
        told.push_str(&std::mem::take(&mut stage.story));
    }
    told
}

#[test]
fn every_scenario_goes_as_it_is_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let bless = std::env::var_os("ORCHD_BLESS").is_some();
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("the scenarios are there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    assert!(
        files.len() >= 15,
        "the scenarios are where they are looked for"
    );
    for file in files {
        let script = fs::read_to_string(&file).expect("a scenario is UTF-8");
        let told = story(&script);
        if bless {
            fs::write(&file, told).expect("it can be written");
        } else {
            assert_eq!(
                told,
                script,
                "{}: ORCHD_BLESS=1 rewrites it, if this is right",
                file.display()
            );
        }
    }
}
