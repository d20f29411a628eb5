//! `orchd config …`: the settings of `serve` and `agent`, looked at without starting either.

use std::ffi::OsString;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{
    Cli, Command, ConfigCheckArgs, ConfigCommand, ConfigFormat, ConfigShowArgs, ConfigUnitArgs,
    ListenerArgs, Process, TokenSource, show_duration,
};
use crate::config::{self, Loaded, Origin, Setting, Value};

use super::failure::Exit;
use super::output::{self, Column, Tone};
use super::{agent, door, logging, machine, serve, unit};

const SERVE_UNIT: &str = include_str!("../assets/orchd-serve.service");
const AGENT_UNIT: &str = include_str!("../assets/orchd-agent.service");

#[rustfmt::skip]
const COLUMNS: [Column; 3] = [
    Column::new("KEY", 0, None, false),
    Column::new("VALUE", 0, None, false),
    Column::new("SOURCE", 0, None, false),
];

/// Runs the command. `globals` are the global options of its command line.
///
/// # Errors
/// What is wrong with the settings.
pub fn run(command: ConfigCommand, globals: &[OsString]) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Show(args) => show(&args, globals),
        ConfigCommand::Check(args) => check(&args, globals),
        ConfigCommand::Unit(args) => unit(&args, globals),
    }
}

fn load(process: Process, globals: &[OsString], options: &[OsString]) -> anyhow::Result<Loaded> {
    let arguments = ["orchd".into()]
        .into_iter()
        .chain(globals.iter().cloned())
        .chain([process.verb().into()])
        .chain(options.iter().cloned());
    let loaded = config::load(arguments)?;
    for warning in loaded.warnings.iter().chain(&loaded.cli.warnings()) {
        output::warning(warning);
    }
    Ok(loaded)
}

fn show(args: &ConfigShowArgs, globals: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut loaded = load(args.process, globals, &args.options)?;
    // As they do, so that what follows from it is the same.
    door::raise_descriptor_limit();
    for setting in &mut loaded.settings {
        derive(setting, &loaded.cli);
    }
    let rendered = match args.output {
        ConfigFormat::Table => {
            match &loaded.file {
                Some(path) => output::note(&format!("configuration file: {}", path.display())),
                None => output::note(&format!("no configuration file: {}", looked_for())),
            }
            table(&loaded.settings)
        }
        ConfigFormat::Json => format!("{:#}\n", view(args.process, &loaded)),
        ConfigFormat::Yaml => yaml_serde::to_string(&view(args.process, &loaded))?,
    };
    output::data(&rendered)?;
    // Settings that would not do are shown all the same: where they come from is what one looks for.
    accept(&loaded.cli)?;
    Ok(Exit::Done.into())
}

fn looked_for() -> String {
    let paths = config::default_files();
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!("neither {} is there", paths.join(" nor "))
}

fn check(args: &ConfigCheckArgs, globals: &[OsString]) -> anyhow::Result<ExitCode> {
    let processes = match args.process {
        Some(process) => vec![process],
        None => vec![Process::Serve, Process::Agent],
    };
    for process in processes {
        let loaded = load(process, globals, &[])?;
        accept(&loaded.cli)?;
        let file = loaded.file.map_or_else(
            || "no configuration file".to_owned(),
            |path| path.display().to_string(),
        );
        output::note(&format!(
            "orchd {}: settings are good ({file})",
            process.verb()
        ));
    }
    Ok(Exit::Done.into())
}

fn unit(args: &ConfigUnitArgs, globals: &[OsString]) -> anyhow::Result<ExitCode> {
    let loaded = load(args.process, globals, &[])?;
    let template = match args.process {
        Process::Serve => SERVE_UNIT,
        Process::Agent => AGENT_UNIT,
    };
    output::data(&unit::filled_in(template, &loaded)?)?;
    Ok(Exit::Done.into())
}

/// What `serve` and `agent` object to before they bind, beyond the form of single values.
fn accept(cli: &Cli) -> anyhow::Result<()> {
    logging::check()?;
    door::trust(cli.connect.api.ca.as_deref())?;
    match &cli.command {
        Command::Serve(args) => {
            args.check()?;
            door::secrets(
                cli.connect.api.tokens(),
                args.client.tokens(),
                &args.listener,
                args.listen,
            )?;
        }
        Command::Agent(args) => {
            args.check()?;
            door::secrets(
                cli.connect.api.tokens(),
                TokenSource::None,
                &args.listener,
                args.listen,
            )?;
        }
        _ => {}
    }
    Ok(())
}

/// Fills in what a setting that nobody set is made from.
fn derive(setting: &mut Setting, cli: &Cli) {
    if setting.value != Value::Unset {
        return;
    }
    let (value, from) = match (&cli.command, setting.key.as_str()) {
        (Command::Serve(args), "heartbeat_interval") => (
            show_duration(args.effective_heartbeat_interval()),
            "a third of node_timeout, at most 10s",
        ),
        (Command::Serve(args), "restart_grace") => (
            show_duration(args.effective_restart_grace()),
            "node_timeout, at least 30s",
        ),
        (Command::Serve(_) | Command::Agent(_), "state_dir") => match serve::default_state_dir() {
            Some(dir) => (dir.display().to_string(), "the user's state directory"),
            None => return,
        },
        (Command::Agent(args), "node_id") => match agent::default_node_id(args) {
            Some(node_id) => (node_id.to_string(), "the host name"),
            None => return,
        },
        (Command::Agent(args), "machine_id") => {
            match machine::known(args.host.state.state_dir.clone()) {
                Some(machine) => (machine.id, machine.from),
                // It is made at the first start.
                None => return,
            }
        }
        (_, "max_connections") => match listener(cli) {
            Some(listener) => (
                door::max_connections(listener).to_string(),
                "half of the files that this process may open, 64 to 65536",
            ),
            None => return,
        },
        (Command::Agent(args), "advertise") if !args.listen.ip().is_unspecified() => {
            (format!("http://{}", args.listen), "listen")
        }
        _ => return,
    };
    setting.value = Value::One(value);
    setting.origin = Origin::Derived(from.to_owned());
}

fn listener(cli: &Cli) -> Option<&ListenerArgs> {
    match &cli.command {
        Command::Serve(args) => Some(&args.listener),
        Command::Agent(args) => Some(&args.listener),
        _ => None,
    }
}

fn table(settings: &[Setting]) -> String {
    let rows: Vec<Vec<(String, Tone)>> = settings
        .iter()
        .flat_map(|setting| {
            let values = match &setting.value {
                Value::Unset => vec!["-"],
                Value::Many(values) if values.is_empty() => vec!["-"],
                Value::One(value) => vec![value.as_str()],
                // A line for each: there may be many, and one of them long.
                Value::Many(values) => values.iter().map(String::as_str).collect(),
            };
            values.into_iter().map(|value| {
                [
                    setting.key.clone(),
                    value.to_owned(),
                    setting.origin.to_string(),
                ]
                .map(|text| (text, Tone::Plain))
                .to_vec()
            })
        })
        .collect();
    output::table(&COLUMNS, &rows, true, None, false)
}

fn view(process: Process, loaded: &Loaded) -> serde_json::Value {
    let settings: Vec<serde_json::Value> = loaded
        .settings
        .iter()
        .map(|setting| {
            let value = match &setting.value {
                Value::Unset => json!(null),
                Value::One(value) => json!(value),
                Value::Many(values) => json!(values),
            };
            let (source, detail) = match &setting.origin {
                Origin::Flag(name) => ("flag", json!(name)),
                Origin::Variable(name) => ("env", json!(name)),
                Origin::File { path, line } => {
                    ("file", json!(format!("{}:{line}", path.display())))
                }
                Origin::Default => ("default", json!(null)),
                Origin::Derived(from) => ("derived", json!(from)),
                Origin::Overruled(by) => ("overruled", json!(by.to_string())),
            };
            json!({
                "key": setting.key, "flag": setting.flag, "variable": setting.variable, "value": value,
                "source": source, "detail": detail,
            })
        })
        .collect();
    let file = loaded.file.as_ref().map(|path| path.display().to_string());
    json!({"verb": process.verb(), "file": file, "settings": settings})
}
