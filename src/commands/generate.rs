//! Completion scripts and manual pages, made from the definition of the command line.
//!
//! Invariant: the same build writes the same bytes on every machine: no date, no host, no environment. Called by
//! `orchd completions` and `orchd man`, and by the test that keeps the files in `completions/` and `man/` equal to
//! what this makes.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap_complete::env::Shells;
use clap_complete::{Generator as _, Shell};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::failure::Exit;
use super::{complete, output};
use crate::cli;
use crate::types::VERSION;

/// The name of the executable.
const BIN: &str = "orchd";
/// The subcommand that clap adds; it has no page of its own.
const HELP: &str = "help";
/// What every piece of roff begins with: a definition of the apostrophe.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
/// The shells there are scripts for.
pub const SHELLS: [Shell; 5] = [
    Shell::Bash,
    Shell::Zsh,
    Shell::Fish,
    Shell::Elvish,
    Shell::PowerShell,
];

/// A file by its name and content.
pub type Generated = (String, Vec<u8>);

/// `orchd completions`.
///
/// # Errors
/// Stdout cannot be written.
pub fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let (_, script) = completion_script(shell);
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done.into())
}

/// `orchd man`.
///
/// # Errors
/// Stdout or a file cannot be written.
pub fn man(dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let pages = man_pages()?;
    let Some(dir) = dir else {
        let (_, page) = &pages[0];
        output::data(&String::from_utf8_lossy(page))?;
        return Ok(Exit::Done.into());
    };
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    for (name, page) in pages {
        let path = dir.join(name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Exit::Done.into())
}

/// The completion script of a shell, under the name the shell looks for. It asks the `orchd` on the path what could stand
/// next, so that it is never older than the executable, and names of nodes are those of the moment. A comment lists the
/// verbs, so that a reader sees what is completed.
///
/// # Panics
/// Never: each of [`SHELLS`] is known to the engine of completions, and memory can be written.
#[must_use]
pub fn completion_script(shell: Shell) -> Generated {
    let mut script = Vec::new();
    Shells::builtins()
        .completer(&shell.to_string())
        .expect("the engine knows the shells there are files for")
        .write_registration(complete::VARIABLE, BIN, BIN, BIN, &mut script)
        .expect("memory takes what is written");
    if shell == Shell::Zsh {
        script = autoloaded(&script);
    }
    (shell.file_name(BIN), annotated(&script).into_bytes())
}

/// With the verbs in a comment, which begins with `#` in each of the shells.
fn annotated(script: &[u8]) -> String {
    let script = String::from_utf8_lossy(script);
    let script = script.trim_start();
    // Zsh reads in the first line, and only there, what the file completes.
    let after_first = script.find('\n').map_or(script.len(), |end| end + 1);
    let begin = if script.starts_with("#compdef") {
        after_first
    } else {
        0
    };
    let (first, rest) = script.split_at(begin);
    let verbs = verbs();
    format!(
        "{first}# What orchd completes, besides the options of each and the names of nodes:\n{verbs}\n{rest}"
    )
}

/// A line for each verb, with its subcommands, in the order of the help.
fn verbs() -> String {
    shown(&cli::command())
        .into_iter()
        .fold(String::new(), |text, verb| {
            let below: Vec<&str> = shown(verb)
                .into_iter()
                .map(clap::Command::get_name)
                .collect();
            let line = format!("#   {BIN} {} {}", verb.get_name(), below.join("|"));
            text + line.trim_end() + "\n"
        })
}

/// The subcommands that the help shows, in its order.
fn shown(command: &clap::Command) -> Vec<&clap::Command> {
    let mut shown: Vec<_> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != HELP)
        .collect();
    shown.sort_by_key(|sub| sub.get_display_order());
    shown
}

/// In a directory of `$fpath` the script is not sourced but runs as the body of a function, which must complete at once:
/// by itself it would only prepare the second press of the key.
fn autoloaded(script: &[u8]) -> Vec<u8> {
    const SOURCED: &str = "compdef _clap_dynamic_completer_orchd orchd";
    const EITHER: &str = "if [ \"$funcstack[1]\" = \"_orchd\" ]; then
    _clap_dynamic_completer_orchd \"$@\"
else
    compdef _clap_dynamic_completer_orchd orchd
fi";
    String::from_utf8_lossy(script)
        .replace(SOURCED, EITHER)
        .into_bytes()
}

/// All manual pages, `orchd.1` first.
///
/// # Errors
/// None that can happen: pages are written to memory.
pub fn man_pages() -> io::Result<Vec<Generated>> {
    let mut pages = Vec::new();
    collect(&cli::command(), &mut pages)?;
    Ok(pages)
}

fn collect(command: &clap::Command, pages: &mut Vec<Generated>) -> io::Result<()> {
    let mut command = command.clone();
    if command.find_subcommand(HELP).is_some() {
        command = command.mut_subcommand(HELP, |help| help.hide(true));
    }
    pages.push(man_page(&command)?);
    command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .try_for_each(|sub| collect(sub, pages))
}

fn man_page(command: &clap::Command) -> io::Result<Generated> {
    let man = Man::new(command.clone());
    let mut body = Vec::new();
    man.render_name_section(&mut body)?;
    let mut synopsis = Vec::new();
    man.render_synopsis_section(&mut synopsis)?;
    body.extend(with_values(command, &synopsis).into_bytes());
    man.render_description_section(&mut body)?;
    man.render_options_section(&mut body)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut body)?;
    }
    if let Some(text) = command.get_after_long_help() {
        sections(&text.to_string()).to_writer(&mut body)?;
    }
    // Each section comes with the same preamble; a page needs it once.
    let body = String::from_utf8_lossy(&body).replace(PREAMBLE, "");
    let name = man.get_filename();
    let title = name.trim_end_matches(".1");
    // The generator would leave out the empty date, and the version would stand in its place. Names of variables must
    // not be broken at the end of a line, so that hyphenation is off, and with it justified lines.
    let page = format!(
        "{PREAMBLE}.TH \"{title}\" \"1\" \"\" \"{BIN} {VERSION}\" \"orchd manual\"\n.nh\n.ad l\n{body}"
    );
    Ok((name, page.into_bytes()))
}

/// The synopsis with what each option takes, which the generator leaves out.
fn with_values(command: &clap::Command, synopsis: &[u8]) -> String {
    command.get_opts().fold(
        String::from_utf8_lossy(synopsis).into_owned(),
        |text, option| {
            let (Some(long), Some(values)) = (option.get_long(), option.get_value_names()) else {
                return text;
            };
            let name = format!("\\-\\-{}\\fR", long.replace('-', "\\-"));
            let value = format!("\\fI{}\\fR", values.join(" ").replace('-', "\\-"));
            // What may be left out hangs on an equals sign.
            let value = if option.is_require_equals_set() {
                format!("[={value}]")
            } else {
                format!(" {value}")
            };
            text.replace(&name, &format!("{name}{value}"))
        },
    )
}

/// Turns the closing part of a help text, blocks of `Heading:` and indented lines, into sections of a page that keep
/// their lines.
fn sections(text: &str) -> Roff {
    let mut page = Roff::new();
    let mut open = false;
    for line in text.lines() {
        match line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            Some(heading) => {
                if open {
                    page.control("fi", []);
                }
                page.control("SH", [heading.to_uppercase().as_str()]);
                page.control("nf", []);
                open = true;
            }
            None if line.is_empty() => {}
            None => {
                page.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
            }
        }
    }
    if open {
        page.control("fi", []);
    }
    page
}
