//! `orchd demo`: a fleet on this machine, what to try with it, and what happens to it.
//!
//! Invariants: the page stands on stdout once everything answers, and one line for each thing that happens after; a part
//! that ends is told of with the command that starts it again; Ctrl-C ends it all, a second one at once, and is
//! its proper end: exit status 0. Called by `commands::run`.

mod page;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::failure::{Exit, Failure};
use super::output::{self, Tone};
use super::{block_on, door, events, logging};
use crate::cli::{ConnectArgs, DemoArgs, DemoProcess};
use crate::client::{Client, EventsQuery};
use crate::config::ConfigError;
use crate::demo::{self, Engines, Fleet, Settings};
use crate::types::{Event, EventKind, listed_model_id};

use page::Page;

/// The engine that is looked for.
const LLAMA_SERVER: &str = "llama-server";
/// How long the start may take without a word about it.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause before a lost connection to the events is made again.
const AGAIN: Duration = Duration::from_millis(300);

/// Runs the demo until it is told to stop.
///
/// # Errors
/// Why it does not start.
pub(super) fn run(args: &DemoArgs, connect: &ConnectArgs) -> anyhow::Result<ExitCode> {
    let (engines, why) = engines(args)?;
    // The control plane would say the same, in its log.
    match crate::listen::bind(args.listen) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            return Err(door::taken(args.listen, "--listen")
                .hint("stop that one, or choose another address, such as --listen 127.0.0.1:9000")
                .into());
        }
        other => other.with_context(|| format!("cannot listen on {}", args.listen))?,
    };
    let executable = std::env::current_exe().context("cannot find this executable")?;
    let settings = Settings {
        orchd: executable.clone(),
        listen: args.listen,
        nodes: args.nodes,
        engines,
    };
    let words = Words {
        typed: typed(&executable, std::env::var_os("PATH").as_deref()),
        why,
        elsewhere: connect.servers.len() != 1
            || connect.servers[0].as_str().trim_end_matches('/')
                != format!("http://{}", args.listen),
    };
    // On this thread: the kernel ends the parts with the one that started them.
    block_on(present(settings, words))
}

/// What the page says besides what there is.
struct Words {
    /// How this executable is called.
    typed: String,
    /// Why the engines are what they are.
    why: String,
    /// Commands would ask another control plane.
    elsewhere: bool,
}

async fn present(settings: Settings, words: Words) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new().context("cannot hear of signals")?;
    let mut fleet = Fleet::start(settings)?;
    {
        let mut ready = std::pin::pin!(fleet.ready());
        let early = tokio::select! {
            ready = timeout(PATIENCE, &mut ready) => ready,
            () = stop.asked() => return Ok(Exit::Done.into()),
        };
        match early {
            Ok(ready) => ready?,
            Err(_) => {
                output::note("starting: waiting for the engines to load ...");
                tokio::select! {
                    ready = ready => ready?,
                    () = stop.asked() => return Ok(Exit::Done.into()),
                }
            }
        }
    }
    let page = Page::of(&fleet, &words);
    output::stream(&page.text())?;
    let client = fleet.client();
    let broken = tokio::select! {
        () = stop.asked() => None,
        Err(e) = told(client) => Some(e),
        Err(e) = watched(&mut fleet, &words.typed) => Some(e),
    };
    output::note("stopping; Ctrl-C once more ends it at once");
    tokio::select! {
        () = fleet.stop() => {}
        // What is left ends with its owner.
        () = stop.asked() => {}
    }
    broken.map_or(Ok(Exit::Done.into()), Err)
}

/// The signals that end a demo.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            // The terminal is gone.
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Says of every part that it has ended, and how it is started again.
async fn watched(fleet: &mut Fleet, orchd: &str) -> anyhow::Result<Infallible> {
    loop {
        let (part, how) = fleet.ended().await;
        happened(
            Tone::Bad,
            &format!("{} ended: {how}; start it again:", part.role),
        )?;
        output::stream(&format!("          {}\n", part.line.typed(orchd)))?;
    }
}

/// Says what happens to the fleet, as its events tell.
async fn told(client: Client) -> anyhow::Result<Infallible> {
    let mut query = EventsQuery {
        node: None,
        after: None,
    };
    loop {
        // While the control plane is gone there is nothing to hear, and that it is gone was said.
        if let Ok(mut stream) = client.events(&query).await {
            while let Ok(frame) = stream.next().await {
                query.after = frame.id.or(query.after);
                let event = serde_json::from_str(&frame.data).ok();
                if let Some((tone, text)) = event.as_ref().and_then(said) {
                    happened(tone, &text)?;
                }
            }
        }
        sleep(AGAIN).await;
    }
}

/// What an event says to somebody who watches; `None` for what is of no interest here.
fn said(event: &Event) -> Option<(Tone, String)> {
    let node = event.node_id.as_ref().map_or("-", |node| node.as_str());
    let reason = || event.reason.as_deref().map(output::printable);
    let because = |text: String| match reason() {
        Some(reason) => format!("{text}: {reason}"),
        None => text,
    };
    let text = match event.kind {
        EventKind::NodeOnline => format!("{node} is Online"),
        EventKind::NodeOffline => because(format!("{node} is Offline")),
        EventKind::NodeFailed => because(format!("{node} has failed")),
        EventKind::NodeDeparted => format!("{node} has left"),
        EventKind::DrainStarted => format!("{node} is draining: it gets no new requests"),
        EventKind::DrainDone => format!("{node} is drained: nothing runs there any more"),
        EventKind::DrainEnded => format!("{node} gets requests again: its drain was ended"),
        EventKind::FleetHold | EventKind::FleetRelease => because(event.kind.as_str().to_owned()),
        EventKind::PoolState => match (event.from.as_deref(), event.to.as_deref()) {
            // What a control plane that was started again finds as it was is no news.
            (Some("unknown"), _) => return None,
            (_, Some("unreachable")) => {
                let text = because(format!("{node}'s engine does not answer"));
                return Some((Tone::Bad, text));
            }
            (Some("unreachable"), Some("ready" | "busy")) => {
                return Some((Tone::Good, format!("{node}'s engine answers again")));
            }
            _ => return None,
        },
        EventKind::NodeRegistered
        | EventKind::NodeUpdated
        | EventKind::NodeSuspect
        | EventKind::DrainUpdated
        | EventKind::PoolAdded
        | EventKind::PoolRemoved => return None,
    };
    Some((events::tone(event.kind), text))
}

/// A line, with the time of day.
fn happened(tone: Tone, text: &str) -> std::io::Result<bool> {
    let style = tone.style();
    let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    output::stream(&format!("{now}  {style}{text}{style:#}\n"))
}

/// Which engines the demo has, and why.
fn engines(args: &DemoArgs) -> Result<(Engines, String), Failure> {
    let path = std::env::var_os("PATH");
    let found = on_path(LLAMA_SERVER, path.as_deref());
    let built_in = |why: &str| Ok((Engines::BuiltIn, why.to_owned()));
    let Some(model) = &args.model else {
        return match found {
            _ if args.built_in => built_in("as --built-in asks for"),
            Some(_) => built_in("there is a llama-server; it takes a model: --model FILE.gguf"),
            None => built_in("for real answers: --llama-server FILE --model FILE.gguf"),
        };
    };
    let named = |what: &str, path: &Path| {
        path.canonicalize()
            .map_err(|e| Failure::new(Exit::Usage, format!("{what} {}: {e}", path.display())))
    };
    let program = match (&args.llama_server, found) {
        (Some(program), _) => named("--llama-server", program)?,
        (None, Some(found)) => found,
        (None, None) => {
            let message = "there is no llama-server on the path to serve the model";
            return Err(Failure::new(Exit::Usage, message)
                .hint("say where it is with --llama-server, or leave out --model"));
        }
    };
    let model = named("--model", model)?;
    let alias = listed_model_id(&model.to_string_lossy()).to_owned();
    let why = format!("{} with {}", program.display(), model.display());
    let arguments = args.engine_arguments.clone();
    let engines = Engines::LlamaServer {
        program,
        model,
        alias,
        arguments,
    };
    Ok((engines, why))
}

/// The executable of this name that a shell would run.
fn on_path(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
        })
}

/// How this executable is called: by its name where that is on the path.
fn typed(executable: &Path, path: Option<&OsStr>) -> String {
    let real = |path: &Path| path.canonicalize().ok();
    match on_path("orchd", path) {
        Some(found) if real(&found) == real(executable) => "orchd".to_owned(),
        _ => demo::quoted(executable.as_os_str()),
    }
}

/// Runs one of the processes of a demo, if that is what the command line asks for.
pub(super) fn process(arguments: &[OsString]) -> Option<anyhow::Result<ExitCode>> {
    let asked = DemoProcess::of(arguments)?;
    let asked = asked.map_err(|e| ConfigError::CommandLine(e).into());
    Some(asked.and_then(be))
}

fn be(process: DemoProcess) -> anyhow::Result<ExitCode> {
    match process {
        DemoProcess::Engine { node, listen } => {
            logging::start()?;
            block_on(async { Ok(demo::engine::run(node, listen).await?) })
                .with_context(|| format!("cannot serve on {listen}"))?;
            Ok(Exit::Done.into())
        }
        DemoProcess::Part { parent, command } => {
            let (program, arguments) = command.split_first().context("no program is named")?;
            let failed = demo::become_part(parent, program, arguments);
            let what = || format!("cannot run {}", Path::new(program).display());
            match failed.with_context(what)? {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_executable_is_called_by_its_name_only_where_a_shell_finds_that_very_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str, mode| {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().expect("it has one")).expect("made");
            fs::write(&file, "").expect("written");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
            file
        };
        let ours = make("bin/orchd", 0o755);
        let other = make("other/orchd", 0o755);
        make("no/orchd", 0o644);
        let path = |dirs: &[&str]| {
            std::env::join_paths(dirs.iter().map(|name| dir.path().join(name))).expect("a path")
        };
        let whole = ours.to_string_lossy().into_owned();
        assert_eq!(typed(&ours, Some(&path(&["no", "bin", "other"]))), "orchd");
        assert_eq!(typed(&ours, Some(&path(&["other", "bin"]))), whole);
        assert_eq!(typed(&ours, Some(&path(&["no"]))), whole);
        assert_eq!(typed(&ours, None), whole);
        assert_eq!(on_path("orchd", Some(&path(&["other"]))), Some(other));
    }
}
