//! Of `generate`: what hostdevctl(1) says of each verb, from the definitions of the command line.

use clap::{Arg, Command};

use super::roff::{line, text};

/// A subsection for each verb.
pub fn page(command: &mut Command) -> String {
    command.build();
    // Whoever reads this needs no help for help.
    command.get_subcommands_mut().filter(|verb| verb.get_name() != "help").map(section).collect()
}

fn section(verb: &mut Command) -> String {
    let usage = verb.render_usage().to_string();
    let usage: Vec<String> = usage.trim_start_matches("Usage:").lines().map(|usage| line(usage.trim())).collect();
    let mut out = format!(".SS \"{}\"\n.nf\n{}\n.fi\n", line(verb.get_name()), usage.join("\n"));
    if let Some(about) = verb.get_about() {
        out += &format!(".PP\n{}.\n", text(&about.to_string()));
    }
    let arguments = verb.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help");
    // What stands alone comes before options, as in the usage.
    let (alone, options): (Vec<&Arg>, Vec<&Arg>) = arguments.partition(|arg| arg.is_positional());
    out + &alone.into_iter().chain(options).map(argument).collect::<String>()
}

fn argument(arg: &Arg) -> String {
    let short = arg.get_short().map_or_else(String::new, |short| format!("-{short}, "));
    let help = arg.get_help().map_or_else(String::new, ToString::to_string);
    let default: Vec<String> = match arg.get_action().takes_values() {
        true => arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect(),
        false => Vec::new(),
    };
    let default = if default.is_empty() { String::new() } else { format!("; {} if absent", default.join(" ")) };
    format!(".TP\n.B {}\n{}{}.\n", line(&format!("{short}{arg}")), text(&help), line(&default))
}
