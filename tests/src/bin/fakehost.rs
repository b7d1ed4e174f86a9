//! Mounts a simulated host and keeps it there: for the demonstration, for measurements, and for tests of whole programs.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use mdevd_tests::fakesys::{self, Builder, FakeHost};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
Usage: fakehost [WORD]... [MOUNTPOINT] [--daemon PROGRAM [--daemon-arg ARG]...] [--exec COMMAND [ARG]...]

Mounts a simulated host with sys/, proc/, etc/ and run/ below MOUNTPOINT, or below a temporary folder, and prints where.
Stays until COMMAND ends, or else until SIGTERM or SIGINT.

What the host has; --numa to --shared-units mean the parent before them:
  --parent NAME:TYPE=COUNT[,TYPE=COUNT]...   a parent with types: 0000:41:00.0:nvidia-63=4,nvidia-64=2
  --numa NODE          its NUMA node
  --driver NAME        its driver
  --exclusive          while one of its types is in use the others offer nothing
  --shared-units N     its types draw on one stock of N units
  --mtty               the kernel's sample parent mtty
  --many PARENTSxTYPES so many PCI parents with so many types, four of each: 512x20

What runs on it:
  --daemon PROGRAM     started with --sys, --proc, --etc, --run, --uevents stdin, and --bus $DBUS_SYSTEM_BUS_ADDRESS if that is set
  --daemon-arg ARG     one more argument for it
  --exec COMMAND ...   started with FAKEHOST=MOUNTPOINT; its exit status becomes fakehost's

Exit status: that of COMMAND; 1 when something failed, 2 for a wrong command line.
";

/// The command line, understood.
struct Options {
    host: Builder,
    daemon: Option<OsString>,
    daemon_args: Vec<OsString>,
    command: Vec<OsString>,
}

fn words(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let mut options =
        Options { host: fakesys::host().real_processes(), daemon: None, daemon_args: Vec::new(), command: Vec::new() };
    let mut parents = 0;
    while let Some(arg) = args.next() {
        let word = arg.to_str().unwrap_or_default().to_owned();
        let mut value = || args.next().ok_or_else(|| format!("{word} needs a value"));
        let host = options.host;
        options.host = match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--exec" => {
                options.command = args.by_ref().collect();
                if options.command.is_empty() {
                    return Err("--exec needs a command".to_owned());
                }
                host
            }
            "--daemon" => {
                options.daemon = Some(value()?);
                host
            }
            "--daemon-arg" => {
                options.daemon_args.push(value()?);
                host
            }
            "--parent" => {
                parents += 1;
                parent(host, &text(value()?)?)?
            }
            "--mtty" => {
                parents += 1;
                host.mtty()
            }
            "--many" => {
                parents += 1;
                many(host, &text(value()?)?)?
            }
            "--numa" | "--driver" | "--exclusive" | "--shared-units" if parents == 0 => {
                return Err(format!("{word} comes after the parent that it is about"));
            }
            "--numa" => host.numa(number(&text(value()?)?)?),
            "--driver" => host.driver(&text(value()?)?),
            "--exclusive" => host.exclusive(),
            "--shared-units" => host.shared_units(number(&text(value()?)?)?),
            _ if word.starts_with('-') => return Err(format!("there is no option '{word}'")),
            _ => host.mount_at(PathBuf::from(arg)),
        };
    }
    Ok(Some(options))
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|value| format!("{value:?} is not UTF-8"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number that fits here"))
}

/// `NAME:TYPE=COUNT,…`; the name may have colons of its own.
fn parent(host: Builder, spec: &str) -> Result<Builder, String> {
    let wrong = || format!("'{spec}' is not NAME:TYPE=COUNT[,TYPE=COUNT]...");
    let (name, types) = spec.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let mut host = host.parent(name);
    for one in types.split(',') {
        let (id, count) = one.split_once('=').filter(|(id, _)| !id.is_empty()).ok_or_else(wrong)?;
        host = host.mdev_type(id, number(count)?);
    }
    Ok(host)
}

fn many(mut host: Builder, spec: &str) -> Result<Builder, String> {
    let (parents, types) = spec.split_once('x').ok_or_else(|| format!("'{spec}' is not PARENTSxTYPES"))?;
    let (parents, types): (u32, u32) = (number(parents)?, number(types)?);
    for n in 0..parents {
        host = host
            .parent(&format!("{:04x}:{:02x}:00.0", n / 255, n % 255 + 1))
            .driver("nvidia")
            .numa(i32::from(n % 2 == 1));
        for id in 0..types {
            host = host
                .mdev_type(&format!("nvidia-{}", 200 + id), 4)
                .described("num_heads=4, frl_config=45, framebuffer=1024M");
        }
    }
    Ok(host)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match words(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("fakehost: {why}; see fakehost --help");
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fakehost: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> io::Result<ExitCode> {
    // Before anything is mounted, so that no signal finds us without a way to unmount.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let host = options.host.mount()?;
    writeln!(io::stdout(), "{}", host.path().display())?;
    let mut daemon = match &options.daemon {
        Some(program) => Some(start_daemon(&host, program, &options.daemon_args)?),
        None => None,
    };
    let mut command =
        match options.command.split_first() {
            Some((program, args)) => {
                let child = Command::new(program).args(args).env("FAKEHOST", host.path()).kill_on_drop(true).spawn();
                Some(child.map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot run {}: {error}", program.display()))
                })?)
            }
            None => None,
        };
    let code = tokio::select! {
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        status = ended(&mut command) => status.map(exit_code),
        status = ended(&mut daemon) => status.and_then(|status| Err(io::Error::other(format!("the daemon ended by itself: {status}")))),
    };
    for child in [&mut command, &mut daemon].into_iter().flatten() {
        stop(child).await?;
    }
    host.unmount()?;
    code
}

fn start_daemon(host: &FakeHost, program: &OsString, args: &[OsString]) -> io::Result<Child> {
    let mut daemon = Command::new(program);
    daemon.args(host.root_args()).args(["--uevents", "stdin"]);
    if let Some(bus) = std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS") {
        daemon.arg("--bus").arg(bus);
    }
    daemon.args(args).stdin(Stdio::from(OwnedFd::from(host.uevents()?))).kill_on_drop(true);
    daemon.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot run {}: {error}", program.display())))
}

/// Waits for a child's end; for ever when there is none.
async fn ended(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // As shells have it, a child that a signal ended counts as failed.
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Asks a child that still runs to end, and makes it after five seconds.
async fn stop(child: &mut Child) -> io::Result<()> {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else { return Ok(()) };
    // It may have ended this very moment.
    let _ = kill_process(pid, Signal::TERM);
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}
