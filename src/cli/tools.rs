//! `orchd completions` and `orchd man` on the command line.

use std::path::PathBuf;

use clap::Args;

/// `orchd completions`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd completions bash > ~/.local/share/bash-completion/completions/orchd
      For bash
  orchd completions zsh > ~/.zfunc/_orchd
      For zsh, with ~/.zfunc in $fpath
  orchd completions fish > ~/.config/fish/completions/orchd.fish
      For fish
  eval (orchd completions elvish | slurp)
      For elvish, in ~/.config/elvish/rc.elv
  orchd completions powershell | Out-String | Invoke-Expression
      For PowerShell, in $PROFILE")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// `orchd man`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd man | man -l -
      Read the manual page
  orchd man --dir ~/.local/share/man/man1
      Install all pages")]
pub struct ManArgs {
    /// Write the page of every command into this directory instead of printing one
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}
