//! What orchd costs on the way to an engine, beside its peers on the same machine in the same minutes.
//!
//! `tests/bench/gateway/run` starts an engine of its own (`engine`), orchd with it, and each of nginx, haproxy,
//! sglang-router and vllm-router that is installed (`routers`); then clients of its own (`load`) ask one after the other
//! for the same, round after round, in an order that changes. What is compared is the time on the processor that the
//! process tree of each router took for its requests: the median, over the rounds, of its ratio to nginx in the same round.
//! An open loop tells what each adds to the time to the first token: the difference of medians (99th percentiles) to
//! those of the engine asked directly in the same round. Nothing else should be busy meanwhile.
//!
//! `--rounds N` takes more or fewer than 4, `--seconds N` makes each longer (an open loop lasts three times as long),
//! `--only WORD` runs the kinds of load that have it in their names, `--clients N` has other numbers of clients than it
//! says, `--orchd FILE` measures that binary, `--beside FILE` measures that one as well, `--write` puts the tables into the
//! README. Exits with 1 when a bar is missed or orchd fails a request, and with 2 without nginx.

mod engine;
mod load;
mod routers;
#[path = "../table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use load::{Arrivals, Ask, Clients, Round};
use routers::Router;

/// The argument by which this program becomes the engine.
const ENGINE: &str = "--engine-on";
/// Before each round: connections are opened, and nothing counts.
const WARM_UP: Duration = Duration::from_millis(300);
/// The open loop goes on for so many times longer: few come in a second, and a 99th percentile is to be one of hundreds.
const OPEN_LONGER: f64 = 3.0;
/// Memory that orchd may take after all this, in MB.
const MOST_MEMORY_MB: f64 = 25.0;
/// What the answers cost that are put together of a stream, to the same streams passed on.
const MOST_ASSEMBLED: f64 = 1.5;
/// How the kind of load begins that only orchd makes streams of.
const ASSEMBLED: &str = "chat assembled";
/// What orchd may add to the time to the first token more than nginx, in ms: median and 99th percentile.
const MOST_ADDED_MS: [f64; 2] = [0.1, 1.0];

/// A kind of load.
struct Kind {
    name: &'static str,
    ask: Ask,
    arrivals: Arrivals,
    /// What its processor time may be to nginx's.
    most: Option<f64>,
}

fn kinds() -> [Kind; 5] {
    let kind = |name, ask, arrivals, most| Kind {
        name,
        ask,
        arrivals,
        most,
    };
    [
        kind(
            "embeddings passed through, 32 clients",
            load::embedding(),
            Arrivals::Closed(32),
            Some(1.4),
        ),
        kind(
            "streams at 0 ms a token, 32 clients",
            load::chat(true, 0),
            Arrivals::Closed(32),
            Some(1.4),
        ),
        kind(
            "streams at 5 ms a token, 200 clients",
            load::chat(true, 5),
            Arrivals::Closed(200),
            Some(1.2),
        ),
        // Only orchd makes streams of them; the others pass them through.
        kind(
            "chat assembled, 32 clients",
            load::chat(false, 0),
            Arrivals::Closed(32),
            None,
        ),
        kind(
            "open loop, 100 streams a second at 5 ms",
            load::chat(true, 5),
            Arrivals::Open(100),
            None,
        ),
    ]
}

struct Options {
    rounds: usize,
    seconds: f64,
    only: Option<String>,
    orchd: PathBuf,
    clients: Option<usize>,
    beside: Option<PathBuf>,
    write: bool,
}

fn main() -> ExitCode {
    let mut options = Options {
        rounds: 4,
        seconds: 2.0,
        only: None,
        orchd: env!("CARGO_BIN_EXE_orchd").into(),
        clients: None,
        beside: None,
        write: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .unwrap_or_else(|| panic!("{argument} takes a value"))
        };
        match argument.as_str() {
            ENGINE => engine::run(value().parse().expect("a port")),
            "--rounds" => options.rounds = value().parse().expect("a number"),
            "--seconds" => options.seconds = value().parse().expect("a number"),
            "--only" => options.only = Some(value()),
            "--clients" => options.clients = Some(value().parse().expect("a number")),
            "--beside" => options.beside = Some(value().into()),
            "--orchd" => options.orchd = value().into(),
            "--write" => options.write = true,
            // What `cargo bench` itself adds.
            "--bench" => {}
            _ => panic!("{argument} is not known here"),
        }
    }
    let as_the_table = options.rounds >= 4
        && options.only.is_none()
        && options.clients.is_none()
        && options.beside.is_none();
    if options.write && !as_the_table {
        eprintln!(
            "--write is for whole runs: not with --only, --clients, --beside or fewer than 4 rounds"
        );
        return ExitCode::from(2);
    }
    bench(&options)
}

/// What a router took for one kind of load, over all rounds.
#[derive(Default)]
struct Figures {
    /// Processor seconds for 1,000 requests; times to the first token and between two arrivals. One for each round, so that
    /// those of one round can be held against each other; NaN where there was none.
    cpu: Vec<f64>,
    first: [Vec<f64>; 2],
    gap: Vec<f64>,
    answered: u32,
    errors: u32,
    error: Option<String>,
}

impl Figures {
    fn add(&mut self, cpu: f64, mut round: Round) {
        let answered = f64::from(round.answered);
        self.cpu.push(if round.answered > 0 {
            cpu / answered * 1e3
        } else {
            f64::NAN
        });
        self.first[0].push(percentile(&mut round.first, 50));
        self.first[1].push(percentile(&mut round.first, 99));
        self.gap.push(percentile(&mut round.gaps, 99));
        self.answered += round.answered;
        self.errors += round.errors;
        self.error = self.error.take().or(round.error);
    }
}

fn bench(options: &Options) -> ExitCode {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let engine = Router::engine(ENGINE);
    let at = engine.address;
    let Some(nginx) = Router::nginx(at, dir) else {
        eprintln!("nginx was not found, on Debian: apt-get install nginx-light");
        return ExitCode::from(2);
    };
    let orchd = Router::orchd("orchd", &options.orchd, at, dir);
    let others = [
        Some(Router::agent(&options.orchd, at, dir)),
        Router::haproxy(at, dir),
        Router::sglang(at, dir),
        Router::vllm(at, dir),
    ];
    // orchd and nginx lie side by side: what is held against a bar is the ratio of neighbours.
    let mut routers = vec![orchd, nginx];
    routers.extend(others.into_iter().flatten());
    let beside = options.beside.as_ref();
    routers.extend(beside.map(|program| Router::orchd("orchd beside", program, at, dir)));
    let idle: Vec<f64> = routers.iter().map(Router::memory_mb).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut all = Vec::new();
    for mut kind in kinds() {
        if options
            .only
            .as_ref()
            .is_some_and(|only| !kind.name.contains(only.as_str()))
        {
            continue;
        }
        if let (Arrivals::Closed(clients), Some(asked)) = (&mut kind.arrivals, options.clients) {
            *clients = asked;
        }
        println!("{}", kind.name);
        let lasting = match kind.arrivals {
            Arrivals::Closed(_) => options.seconds,
            Arrivals::Open(_) => options.seconds * OPEN_LONGER,
        };
        let mut figures: Vec<Figures> = Vec::new();
        figures.resize_with(routers.len() + 1, Figures::default);
        for round in 0..options.rounds {
            let mut order: Vec<usize> = (0..figures.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for who in order {
                let (address, prefix) =
                    (routers.get(who)).map_or((at, ""), |router| (router.address, router.prefix));
                // Nobody's connections grow old while the others are measured.
                let clients = Clients::new(address, prefix);
                let run = |time| clients.run(&runtime, &kind.ask, kind.arrivals, time);
                drop(run(WARM_UP));
                let before = routers.get(who).map_or(0.0, Router::cpu_seconds);
                let round = run(Duration::from_secs_f64(lasting));
                let after = routers.get(who).map_or(0.0, Router::cpu_seconds);
                figures[who].add(after - before, round);
            }
        }
        show(&routers, &mut figures);
        all.push((kind, figures));
    }
    let memory: Vec<(f64, f64)> = routers
        .iter()
        .zip(idle)
        .map(|(router, idle)| (idle, router.memory_mb()))
        .collect();
    println!("memory, idle and after:");
    for (router, (idle, after)) in routers.iter().zip(&memory) {
        println!("  {:<14} {idle:>6.1} MB {after:>6.1} MB", router.name);
    }
    let missed = judge(&all, &memory);
    if options.write {
        write(&all, &routers, &memory);
    }
    if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Processor time to that of another, in the same round: the median.
fn ratio(one: &Figures, other: &Figures) -> f64 {
    let mut ratios: Vec<f64> = one
        .cpu
        .iter()
        .zip(&other.cpu)
        .map(|(one, other)| one / other)
        .collect();
    percentile(&mut ratios, 50)
}

/// Time to the first token over that of another in the same round, in ms: the median of medians (0) or 99th percentiles (1).
fn added(one: &Figures, other: &Figures, which: usize) -> f64 {
    let mut added: Vec<f64> = one.first[which]
        .iter()
        .zip(&other.first[which])
        .map(|(one, other)| one - other)
        .collect();
    percentile(&mut added, 50)
}

/// A figure, unless there is none.
fn shown(value: f64, show: impl FnOnce(f64) -> String) -> String {
    if value.is_nan() {
        String::new()
    } else {
        show(value)
    }
}

fn show(routers: &[Router], figures: &mut [Figures]) {
    println!(
        "  {:<14} {:>8} {:>8} {:>17} {:>10} {:>8} {:>6}",
        "", "CPU s/1k", "to nginx", "first token added", "gap p99", "answers", "errors"
    );
    let (direct, rest) = figures
        .split_last_mut()
        .expect("there is always the direct way");
    for (who, router) in routers.iter().enumerate() {
        let ratio = ratio(&rest[who], &rest[1]);
        let p99 = added(&rest[who], direct, 1);
        let first = shown(added(&rest[who], direct, 0), |median| {
            format!("{median:.3} / {p99:.3} ms")
        });
        let figures = &mut rest[who];
        println!(
            "  {:<14} {:>8.4} {ratio:>8.2} {first:>17} {:>10} {:>8} {:>6} {}",
            router.name,
            percentile(&mut figures.cpu, 50),
            shown(percentile(&mut figures.gap, 50), |gap| format!(
                "{gap:.2} ms"
            )),
            figures.answered,
            figures.errors,
            figures.error.as_deref().unwrap_or_default(),
        );
    }
    let gap = shown(percentile(&mut direct.gap, 50), |gap| {
        format!("{gap:.2} ms")
    });
    println!(
        "  {:<14} {:>8} {:>8} {:>17} {gap:>10} {:>8} {:>6}",
        "direct", "", "", "", direct.answered, direct.errors
    );
}

/// Holds the bars against what was measured. True when one is missed.
fn judge(all: &[(Kind, Vec<Figures>)], memory: &[(f64, f64)]) -> bool {
    let mut missed = all.is_empty();
    let mut bar = |what: &str, value: f64, most: f64| {
        // What could not be measured has met no bar.
        let is_met = value <= most;
        missed |= !is_met;
        let verdict = if is_met { "ok" } else { "MISSED" };
        println!("{verdict:<6} {what}: {value:.2}, at most {most}");
    };
    let streaming = all
        .iter()
        .find(|(kind, _)| kind.name.starts_with("streams at 0 ms"));
    for (kind, figures) in all {
        let [orchd, nginx, .., direct] = figures.as_slice() else {
            unreachable!("orchd, nginx and the direct way are always there");
        };
        if let Some(most) = kind.most {
            bar(
                &format!("{}, processor time to nginx's", kind.name),
                ratio(orchd, nginx),
                most,
            );
        }
        if let (true, Some((_, streaming))) = (kind.name.starts_with(ASSEMBLED), streaming) {
            let name = "assembled, processor time to that of streaming";
            bar(name, ratio(orchd, &streaming[0]), MOST_ASSEMBLED);
        }
        if let Arrivals::Open(_) = kind.arrivals {
            for (which, most) in MOST_ADDED_MS.into_iter().enumerate() {
                let name = ["median", "99th percentile"][which];
                let more = added(orchd, direct, which) - added(nginx, direct, which);
                bar(
                    &format!("first token, {name}, ms more than nginx"),
                    more,
                    most,
                );
            }
        }
        // A peer that fails is no measure.
        for (who, figures) in [("orchd", orchd), ("nginx", nginx), ("the engine", direct)] {
            bar(
                &format!("{}, errors of {who}", kind.name),
                f64::from(figures.errors),
                0.0,
            );
        }
    }
    bar("memory after the run, MB", memory[0].1, MOST_MEMORY_MB);
    missed
}

fn write(all: &[(Kind, Vec<Figures>)], routers: &[Router], memory: &[(f64, f64)]) {
    let mut head = vec!["processor time to nginx's"];
    head.extend(routers.iter().map(|router| router.name));
    head.push("bar for orchd");
    let mut rows = Vec::new();
    let streaming = all
        .iter()
        .find(|(kind, _)| kind.name.starts_with("streams at 0 ms"));
    for (kind, figures) in all {
        let mut row = vec![kind.name.to_owned()];
        row.extend(routers.iter().enumerate().map(|(who, _)| {
            let errors = figures[who].errors;
            let failed = if errors > 0 {
                format!(" ({errors} errors)")
            } else {
                String::new()
            };
            format!("{:.2}{failed}", ratio(&figures[who], &figures[1]))
        }));
        row.push(kind.most.map_or(String::new(), |most| most.to_string()));
        rows.push(row);
        if let (true, Some((_, streaming))) = (kind.name.starts_with(ASSEMBLED), streaming) {
            let mut row = vec!["the same, to orchd's own streams at 0 ms".to_owned()];
            row.push(format!("{:.2}", ratio(&figures[0], &streaming[0])));
            row.extend((1..routers.len()).map(|_| String::new()));
            row.push(MOST_ASSEMBLED.to_string());
            rows.push(row);
        }
        if let Arrivals::Open(_) = kind.arrivals {
            let direct = figures.last().expect("there is always the direct way");
            for (which, name) in ["median", "99th percentile"].into_iter().enumerate() {
                let mut row = vec![format!("the same: added to the first token, {name}")];
                row.extend((0..routers.len()).map(|who| {
                    shown(added(&figures[who], direct, which), |ms| {
                        format!("{ms:.2} ms")
                    })
                }));
                row.push(format!("nginx + {} ms", MOST_ADDED_MS[which]));
                rows.push(row);
            }
        }
    }
    for (name, which) in [("memory, idle", false), ("memory, afterwards", true)] {
        let mut row = vec![name.to_owned()];
        row.extend(
            memory
                .iter()
                .map(|(idle, after)| format!("{:.0} MB", if which { *after } else { *idle })),
        );
        row.push(if which {
            format!("{MOST_MEMORY_MB} MB")
        } else {
            String::new()
        });
        rows.push(row);
    }
    table::write("gateway", &head, &rows);
}

/// NaN of nothing, and of what has one.
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let at = (values.len() - 1) * percent;
    // Of an even number the median is between two.
    if percent == 50 {
        return f64::midpoint(values[at / 100], values[at.div_ceil(100)]);
    }
    values[at / 100]
}
