//! The command line of mdevd: reads what was typed, does it over D-Bus, prints, and says by its exit status how it went.
//!
//! What can be typed is in [`cli`], what each verb does in [`verbs`], how mdevd is reached in [`client`], what it answers in [`view`]
//! and, of PCI functions, what follows from that in [`card`], how it is printed in [`table`], [`outline`] and [`json`], what can go wrong in
//! [`error`].

mod card;
mod cli;
mod client;
mod error;
mod json;
mod outline;
mod table;
mod verbs;
mod view;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapError;

use cli::Cli;
use error::Error;
use table::{BAD, safe_lines};
use verbs::Said;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&Error::Refused(format!("cannot start: {error}"))),
    };
    match runtime.block_on(verbs::run(cli.verb)) {
        Ok(said) => say(&said),
        Err(error) => complain(&error),
    }
}

/// Prints what a verb has to say: its result, then what is only for people.
fn say(said: &Said) -> ExitCode {
    let mut out = anstream::stdout().lock();
    match out.write_all(said.out.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        // Whoever reads has seen enough, as `head` has.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(error) => return complain(&Error::Refused(format!("cannot write the output: {error}"))),
    }
    for note in &said.notes {
        // Nothing is left to be done when nobody listens.
        let _ = writeln!(anstream::stderr(), "hostdevctl: {}", safe_lines(note));
    }
    ExitCode::from(said.code)
}

fn complain(error: &Error) -> ExitCode {
    let _ = writeln!(anstream::stderr(), "{BAD}hostdevctl:{BAD:#} {}", safe_lines(&error.to_string()));
    ExitCode::from(error.code())
}

/// What clap says instead of a verb: help, the version, or what is wrong with the words.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ClapError::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let text = error.render().to_string();
            complain(&Error::Usage(text.strip_prefix("error: ").unwrap_or(&text).to_owned()))
        }
    }
}
