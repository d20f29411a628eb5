//! What happens to a fleet when something breaks, under load, with the real binary: a fault, and figures of what it did.
//!
//! `tests/faults/run [--long [--write]] [--seed NUMBER] [NAME]...` injects each of its faults, or those whose names contain
//! one of the words, and prints a line of figures for each; `--list` prints their names. The short form is part of
//! `tests/run`; the long one has more rounds and longer loads, and `--write` puts the table of all faults into the README.
//! What is asked for in any other way is refused with exit code 2. Whatever is left to chance comes of the seed, which is
//! printed first. A fault whose invariants did not hold is shown with what was seen, and the exit code is 1. All along,
//! each fault that has what it takes for that holds these:
//!
//! - no live node is Offline, and no dead one Online beyond its bound; nothing is sent to a drained node;
//! - nothing that was acknowledged is lost;
//! - no permit leaks, and no slot is over-committed by us;
//! - every client gets a complete answer or a clear error, and `/metrics` tells of as many as the clients saw.

mod accounts;
mod clients;
#[path = "../it/fake_control_plane.rs"]
#[allow(dead_code, reason = "shared with the tests of tests/it")]
mod fake_control_plane;
mod fleet;
mod injected;
mod network;
mod processes;
mod scene;
mod scripted;
#[path = "../it/scripted_engine.rs"]
#[allow(dead_code, reason = "shared with the tests of tests/it")]
mod scripted_engine;
mod shims;
mod store;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of tests/it")]
mod support;
#[path = "../bench/table.rs"]
mod table;
mod trial;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use tokio::time::Instant;

use support::seed::Random;

/// What a run was asked for.
struct Setting {
    /// Chance of this fault alone: the same however many faults run before it.
    random: Random,
    /// The long form: more rounds, longer loads.
    long: bool,
}

/// One thing that breaks.
struct Fault {
    /// As it is called on the command line and in the table.
    name: &'static str,
    /// Injects it, asserts what must hold and gives the line of figures, in words.
    inject: fn(&mut Setting) -> String,
}

/// In the order they run in.
const FAULTS: &[&[Fault]] = &[
    processes::FAULTS,
    network::FAULTS,
    fleet::FAULTS,
    store::FAULTS,
];

/// What the command line asks for.
#[derive(Default)]
struct Asked {
    long: bool,
    write: bool,
    list: bool,
    seed: Option<u64>,
    words: Vec<String>,
}

impl Asked {
    /// Reads it, or says what is wrong with it.
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--long" => asked.long = true,
                "--write" => asked.write = true,
                "--list" => asked.list = true,
                "--seed" => {
                    let number = arguments.next().and_then(|seed| seed.parse().ok());
                    asked.seed = Some(number.ok_or("--seed takes a number")?);
                }
                // What `cargo bench` itself adds.
                "--bench" => {}
                option if option.starts_with('-') => {
                    return Err(format!(
                        "there is no {option}, only --long, --write, --list, --seed NUMBER and names of faults:\n{}",
                        names()
                    ));
                }
                word if !faults().any(|fault| fault.name.contains(word)) => {
                    return Err(format!("no fault is called {word:?}, only:\n{}", names()));
                }
                _ => asked.words.push(argument),
            }
        }
        if asked.write && !(asked.long && asked.words.is_empty()) {
            let why = "--write needs --long and no names: the README's table is of the long form of every fault";
            return Err(why.to_owned());
        }
        Ok(asked)
    }

    fn is_for(&self, fault: &Fault) -> bool {
        let mut words = self.words.iter();
        self.words.is_empty() || words.any(|word| fault.name.contains(word.as_str()))
    }
}

fn faults() -> impl Iterator<Item = &'static Fault> {
    FAULTS.iter().copied().flatten()
}

/// The names of all faults, a line each.
fn names() -> String {
    let names: Vec<_> = faults().map(|fault| fault.name).collect();
    names.join("\n")
}

fn main() -> ExitCode {
    let asked = match Asked::read(std::env::args().skip(1)) {
        Ok(asked) if asked.list => {
            println!("{}", names());
            return ExitCode::SUCCESS;
        }
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    // If `cargo` is killed, nobody is left who wants to know; what was started here ends with this process.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).expect("a signal");
    let long = asked.long;
    let seed = asked.seed.unwrap_or_else(|| Random::by_chance().0);
    println!(
        "tests/faults/run --seed {seed}{}",
        if long { " --long" } else { "" }
    );
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for fault in faults().filter(|fault| asked.is_for(fault)) {
        // FNV-1a of the name: a fault's chance does not depend on which others run.
        let salt = fault
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let mut setting = Setting {
            random: Random(seed ^ salt),
            long,
        };
        let begun = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| (fault.inject)(&mut setting))) {
            Ok(figures) => {
                println!(
                    "{:<18} {figures} [{:.0} s]",
                    fault.name,
                    begun.elapsed().as_secs_f64()
                );
                rows.push(vec![fault.name.to_owned(), figures]);
            }
            Err(_) => {
                println!("{:<18} FAILED, see above", fault.name);
                failed.push(fault.name);
            }
        }
    }
    if !failed.is_empty() {
        println!("FAILED: {}", failed.join(", "));
        println!(
            "again: tests/faults/run --seed {seed}{} {}",
            if long { " --long" } else { "" },
            failed.join(" ")
        );
        return ExitCode::FAILURE;
    }
    if asked.write {
        table::write("faults", &["fault", "what was seen"], &rows);
    }
    ExitCode::SUCCESS
}
