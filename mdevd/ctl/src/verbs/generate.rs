//! `generate`, for packagers: what follows from the definitions in this program, completions and parts of man pages.

mod interfaces;
mod roff;
mod verbs;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, Generate, Generated};
use crate::error::Error;
use crate::verbs::Said;

/// Runs the verb.
pub fn run(args: &Generate) -> Result<Said, Error> {
    Ok(Said::from(match args.what {
        Generated::Verbs => verbs::page(&mut command()),
        Generated::Interfaces => interfaces::page()?,
        Generated::Bash => completions(Shell::Bash),
        Generated::Zsh => completions(Shell::Zsh),
        Generated::Fish => completions(Shell::Fish),
    }))
}

/// The program as people know it, without its hidden verbs.
fn command() -> Command {
    let whole = Cli::command();
    let verbs = whole.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    Command::new("hostdevctl").version(env!("CARGO_PKG_VERSION")).subcommands(verbs)
}

fn completions(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command(), "hostdevctl", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
