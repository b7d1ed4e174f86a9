//! The program that the qemu hook of libvirt runs for mdevd: `mdevd-hook NAME OP SUBOP EXTRA`, the domain's XML on stdin.
//!
//! It tells the daemon that a domain starts (`prepare`), has ended (`release`) or was found running by a restarted
//! libvirt daemon (`reconnect`), and nothing else. libvirt waits for it, without a limit and with the domain locked, so
//! it is short and bounded, and calls nothing of libvirt. What libvirt does with the answer decides what it may do:
//!
//! - A failing `prepare` refuses the start, and stderr reaches the person who asked for it. A domain without a request
//!   of ours is never even heard of on the bus, unless a claim of it is left over or it has a PCI function that the
//!   configuration says to manage, and is refused only while somebody else has such a function or is at work with it.
//!   What else is wrong with a function that nobody requests keeps no domain from starting.
//! - A failing `reconnect` kills the guest: it never fails.
//! - What is printed on stdout replaces the domain's XML in some operations: nothing is ever printed there.
//!
//! Where to look: what is read from stdin, [`input`]; which libvirt daemon it is that calls, [`caller`]; the files in
//! `/run`, [`state`]; the calls to mdevd, [`bus`].

#![deny(clippy::print_stdout)]

mod bus;
mod caller;
mod input;
mod state;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::exit,
    time::{Duration, Instant},
};

use mdevd_core::{
    domain_xml::Domain,
    hostdev::HostdevSource,
    names::{PciAddress, PciSelector, printable},
};
use mdevd_dbus::{ErrorName, error};

use crate::{
    bus::{Failure, Subject},
    caller::Caller,
    input::Input,
    state::State,
};

/// How long libvirt is kept waiting before a start is refused, all in all.
const PREPARE_LIMIT: Duration = Duration::from_secs(8);
/// How long for the end of a run, before a mark takes the place of the call.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);
/// How long for a domain that requests nothing, but has a device that is managed.
const MANAGED_LIMIT: Duration = Duration::from_secs(1);
/// How long where the outcome decides nothing.
const NOTICE_LIMIT: Duration = Duration::from_secs(2);

/// What a person reads who runs it by hand.
const HELP: &str = "\
Usage: mdevd-hook NAME OP SUBOP EXTRA <DOMAIN.xml

libvirt runs this when a domain starts and stops, by way of /etc/libvirt/hooks/qemu.d/mdevd.
It asks mdevd for the devices that the domain's metadata requests. There is no other use for it.

For tests: DBUS_SYSTEM_BUS_ADDRESS names another system bus, MDEVD_RUN_DIR another /run.
";

fn main() {
    let started = Instant::now();
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    exit(match args.as_slice() {
        [only] if only == "--help" || only == "-h" => print(HELP),
        [only] if only == "--version" => print(concat!("mdevd-hook ", env!("CARGO_PKG_VERSION"), "\n")),
        [name, op, subop, extra] => {
            hook(started, &args, [name, op, subop, extra].map(|arg| arg.to_string_lossy().into_owned()))
        }
        _ => {
            complain(
                "this needs four arguments, NAME OP SUBOP EXTRA, and is run by libvirt; 'mdevd-hook --help' says more",
            );
            2
        }
    });
}

/// The only thing that goes to stdout: what a person asked for, which is never asked for with four arguments.
fn print(text: &str) -> i32 {
    i32::from(io::stdout().write_all(text.as_bytes()).is_err())
}

/// One line for the person who starts the domain. Nobody may be listening.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "mdevd: {message}");
}

/// One call by libvirt; gives the exit status.
fn hook(started: Instant, args: &[OsString], [name, op, subop, extra]: [String; 4]) -> i32 {
    // Before anything takes time: which process is it that waits for this one?
    let caller = Caller::find(args);
    match (op.as_str(), subop.as_str()) {
        ("prepare", "begin") => prepare(started, &name, args, caller),
        ("release", "end") => release(started, &extra, args, caller),
        ("reconnect", "begin") => reconnect(started, caller),
        // libvirt does not mind that nobody reads the XML.
        _ => 0,
    }
}

/// A domain is about to start.
fn prepare(started: Instant, name: &str, args: &[OsString], caller: Option<Caller>) -> i32 {
    let mut domain = match Input::read(io::stdin().lock()) {
        Input::Domain(domain) => domain,
        Input::Unreadable { ours: false, .. } => return 0,
        Input::Unreadable { ours: true, why } => {
            complain(&format!("the requests of domain '{}' cannot be read: {why}", printable(name)));
            return 1;
        }
    };
    let own = domain.requests.len();
    let requested = own > 0;
    let Some(state) = State::of_system() else {
        if requested {
            complain(&format!(
                "domain '{}' requests devices of the host, which needs qemu:///system; define it there, or remove the \
                 mdevd element from its metadata",
                printable(&domain.name)
            ));
        }
        return i32::from(requested);
    };
    let managed = managed_requests(&domain, &state);
    let has_managed = !managed.is_empty();
    domain.requests.extend(managed);
    if domain.requests.is_empty() && state.claim(domain.uuid).is_none() {
        return 0;
    }
    // An orphan: the libvirt daemon that began this start is gone, and the start with it.
    let Some(caller) = caller.filter(|caller| caller.still_waits(args)) else {
        return i32::from(requested);
    };
    let subject = Subject::of(&domain);
    let outcome = match (requested, has_managed) {
        (true, _) => bus::prepare(&subject, caller, started + PREPARE_LIMIT),
        // What an earlier run had may be about to go back to the host, and must not when this run has it.
        (false, true) if state.claim(domain.uuid).is_some() => {
            bus::prepare_without_start(&subject, caller, started + PREPARE_LIMIT)
        }
        (false, true) => bus::prepare_without_start(&subject, caller, started + MANAGED_LIMIT),
        // The claim is left over from an earlier run, and no concern of this start.
        (false, false) => bus::prepare(&subject, caller, started + NOTICE_LIMIT),
    };
    let outcome = match outcome {
        // It may be about a function that nobody asked for: that must not keep the domain from what it asks for.
        Err(failure) if requested && has_managed && refused_as(&failure).is_some_and(|name| !is_taken(name)) => {
            domain.requests.truncate(own);
            bus::prepare(&Subject::of(&domain), caller, started + PREPARE_LIMIT)
        }
        outcome => outcome,
    };
    match outcome {
        Err(failure) if requested || (has_managed && refused_as(&failure).is_some_and(is_taken)) => {
            complain(&refusal(&domain, &failure));
            1
        }
        _ => 0,
    }
}

/// A request for each PCI function of the domain that mdevd is to manage and that no request of its own names.
fn managed_requests(domain: &Domain, state: &State) -> Vec<Vec<(String, String)>> {
    let functions = domain.hostdevs.iter().filter_map(|hostdev| match hostdev.source {
        HostdevSource::Pci(address) => Some(address),
        HostdevSource::Mdev(_) => None,
    });
    let functions: Vec<PciAddress> = functions.collect();
    if functions.is_empty() {
        return Vec::new();
    }
    let values = |key: &'static str| domain.requests.iter().flatten().filter(move |(k, _)| k == key).map(|(_, v)| v);
    let named: Vec<PciSelector> = values("address").filter_map(|address| address.parse().ok()).collect();
    let managed = state.managed();
    let means = |selectors: &[PciSelector], address| selectors.iter().any(|selector| selector.means(address));
    let of_ours = functions.into_iter().filter(|address| means(&managed, *address) && !means(&named, *address));
    let names = (0..).map(|number| format!("fixed{number}")).filter(|name| values("name").all(|taken| taken != name));
    of_ours.zip(names).map(|(at, name)| vec![("name".into(), name), ("address".into(), at.to_string())]).collect()
}

/// Which error mdevd itself answered with.
fn refused_as(failure: &Failure) -> Option<ErrorName> {
    match failure {
        Failure::Call(error) => error::split(error).0,
        Failure::TimedOut | Failure::Runtime(_) => None,
    }
}

/// Whether somebody else has the device, or is at work with it: asking for less would only leave it unclaimed.
fn is_taken(name: ErrorName) -> bool {
    matches!(name, ErrorName::InUse | ErrorName::Busy)
}

/// Why the domain does not start, and what to do.
fn refusal(domain: &Domain, failure: &Failure) -> String {
    let why = match failure {
        Failure::Call(error) if !error::is_unreachable(error) => return error::split(error).1,
        Failure::Call(error) => format!("mdevd cannot be reached ({})", error::split(error).1),
        Failure::Runtime(error) => format!("the call to mdevd cannot be made ({error})"),
        Failure::TimedOut => format!("mdevd did not answer within {} s", PREPARE_LIMIT.as_secs()),
    };
    format!(
        "domain '{}' requests devices, but {why}; see 'systemctl status mdevd', get it to run with 'systemctl restart mdevd', \
         and start the domain again",
        printable(&domain.name)
    )
}

/// A run of a domain has ended, or failed to begin. libvirt ignores what comes of this.
fn release(started: Instant, reason: &str, args: &[OsString], caller: Option<Caller>) -> i32 {
    let (Some(caller), Some(state)) = (caller, State::of_system()) else {
        return 0;
    };
    let Input::Domain(domain) = Input::read_once_started(io::stdin().lock()) else {
        return 0;
    };
    let Some(claim) = state.claim(domain.uuid) else {
        return 0;
    };
    // Without a run it would be freed whatever its run: better none than the wrong one. The daemon finds out by itself.
    let Some(run) = claim.run else { return 0 };
    // A claim that was read while the libvirt daemon lived is of the run that has ended: as long as that daemon waits for
    // this process it begins no other.
    if !caller.still_waits(args) {
        return 0;
    }
    let (uuid, deadline) = (domain.uuid.to_string(), started + RELEASE_LIMIT);
    let Err(failure) = bus::release(&uuid, &run, reason, deadline) else {
        return 0;
    };
    // The mark comes before the daemon is started, so that it is there when the daemon looks for it.
    if let Err(error) = state.mark_released(domain.uuid, &run, reason) {
        complain(&format!(
            "the end of domain '{}' could not be noted in /run/mdevd/released ({error}); its devices are freed when mdevd \
             sees that it is gone",
            printable(&domain.name)
        ));
        return 1;
    }
    if matches!(&failure, Failure::Call(error) if error::is_unreachable(error))
        && bus::release_with_start(&uuid, &run, reason, deadline).is_ok()
    {
        state.unmark_released(domain.uuid);
    }
    0
}

/// A libvirt daemon was restarted and found the domain running. Whatever goes wrong here: failing would kill the guest.
fn reconnect(started: Instant, caller: Option<Caller>) -> i32 {
    if let (Some(caller), Some(state)) = (caller, State::of_system())
        && let Input::Domain(domain) = Input::read_once_started(io::stdin().lock())
        && (!domain.requests.is_empty() || state.claim(domain.uuid).is_some())
    {
        // The daemon adopts running domains by itself as well.
        let _ = bus::adopt(&Subject::of(&domain), caller, started + NOTICE_LIMIT);
    }
    0
}
