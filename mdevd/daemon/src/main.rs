//! The mdevd daemon: the one service that knows every mediated device a virtual machine can be given, creates and removes them,
//! promises each to one owner, and answers on D-Bus. Started by systemd, by the bus, or by hand with other roots.

mod auth;
mod bus;
mod config;
mod engine;
mod error;
mod logging;
mod options;
mod publish;
mod scanner;
mod views;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use mdevd_host::roots::Roots;
use mdevd_host::uevent::{UeventMessage, UeventSource};
use mdevd_host::write::{VERBS, writer_main};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::engine::scan::Event;
use crate::engine::{Engine, Handle, Jobs};
use crate::publish::Publisher;

/// How long work that is under way may still take when the daemon is stopped; systemd kills it after two seconds.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Creates mediated devices, promises them to virtual machines, and answers on D-Bus as org.mdevd1.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
struct Args {
    /// Where sysfs is.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    sys: PathBuf,
    /// Where procfs is.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    proc: PathBuf,
    /// Where the configuration is.
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    etc: PathBuf,
    /// Where the state of this boot is: mdevd's own and libvirt's.
    #[arg(long, value_name = "DIR", default_value = "/run")]
    run: PathBuf,
    /// The bus to answer on, as a D-Bus address; the system bus if absent.
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// Where kernel events come from.
    #[arg(long, value_enum, default_value_t = Uevents::Netlink)]
    uevents: Uevents,
}

/// Where kernel events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Uevents {
    /// From the kernel.
    Netlink,
    /// From a socket that is the standard input: for a simulated host.
    Stdin,
}

fn main() -> ExitCode {
    let mut argv = std::env::args_os().skip(1);
    // The writer is this same program, started for every write: nothing may be in its way.
    if let Some(verb) = argv.next().filter(|verb| VERBS.iter().any(|known| verb == known)) {
        return writer_main(&verb, argv);
    }
    let args = Args::parse();
    let set_log_level = logging::start();
    let code = match run(args, set_log_level) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            1
        }
    };
    // A thread that hangs in a read must not keep the process.
    std::process::exit(code)
}

fn run(args: Args, set_log_level: fn(tracing::Level)) -> anyhow::Result<()> {
    mdevd_host::rights::keep()?;
    let roots = Roots { sys: args.sys, proc: args.proc, etc: args.etc, run: args.run };
    let config =
        config::load(&roots.etc, Path::new(engine::reload::USR_LIB)).context("the configuration cannot be used")?;
    set_log_level(config.log_level);
    mdevd_host::files::ensure_state_dirs(&roots)?;
    let _lock = mdevd_host::files::instance_lock(&roots)?;
    // The file that this process runs, also when an upgrade has put another in its place.
    let exe = PathBuf::from("/proc/self/exe");
    let source = match args.uevents {
        Uevents::Netlink => UeventSource::netlink()?,
        Uevents::Stdin => {
            use std::os::fd::AsFd;
            UeventSource::fed(std::io::stdin().as_fd().try_clone_to_owned().context("the standard input is no socket")?)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, serve(roots, exe, config, source, args.bus, set_log_level))
}

async fn serve(
    roots: Roots,
    exe: PathBuf,
    config: config::Config,
    source: UeventSource,
    bus: Option<String>,
    set_log_level: fn(tracing::Level),
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (handle, jobs): (Handle, Jobs) = engine::queue();
    let builder = match &bus {
        Some(address) => zbus::connection::Builder::address(address.as_str()),
        None => zbus::connection::Builder::system(),
    };
    let connection = builder.build().await.context("the D-Bus system bus cannot be reached")?;
    let publisher = Publisher::new(connection.clone(), handle.clone()).await?;
    let (events_to, events) = mpsc::unbounded_channel();
    let engine = Engine::new(roots, exe, publisher, config, set_log_level, events_to.clone());

    // Events are collected before the first look, so that nothing happens unseen between the two.
    start_listeners(&engine, source, &events_to)?;
    engine.load(&events_to).await;
    engine.publish().await;
    tokio::task::spawn_local(engine.clone().serve_events(events));
    tokio::task::spawn_local(jobs.serve(engine.clone()));
    connection
        .request_name(mdevd_dbus::BUS_NAME)
        .await
        .context("the bus name org.mdevd1 cannot be had; is another mdevd running?")?;
    let recovering = engine.clone();
    tokio::task::spawn_local(async move {
        recovering.recover().await;
        recovering.keep_looking().await;
    });
    // Without systemd there is nobody to notify, which is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::task::spawn_local(show_life(handle));
    tracing::info!(
        "ready: {} parents, {} mediated devices",
        engine.state.borrow().inventory.parents().count(),
        engine.state.borrow().inventory.mdevs().count()
    );

    let mut lost_bus = std::pin::pin!(connection_closed(&connection));
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // Its errors are logged and listed where they happen.
                let _ = engine.reload().await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut lost_bus => anyhow::bail!("the connection to the bus is lost"),
        }
    }
    stop(&engine).await;
    Ok(())
}

/// Tells systemd that the engine turns, twice in the time within which it wants to hear that. The engine says so itself, to a call that
/// waits its turn behind those of clients. A read that hangs in the kernel is on the scan thread, and does not keep it.
async fn show_life(handle: Handle) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    while handle.call(|_| async { Ok(()) }).await.is_ok() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(within / 2).await;
    }
}

/// Returns when the bus has closed the connection.
async fn connection_closed(connection: &zbus::Connection) {
    use std::future::poll_fn;
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(zbus::MessageStream::from(connection));
    while poll_fn(|context| messages.as_mut().poll_next(context)).await.is_some() {}
}

/// Lets calls that are under way end, as far as that is quickly done. What is left is on disk and is taken up at the next start; no
/// device is touched.
async fn stop(engine: &Rc<Engine>) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let deadline = Instant::now() + STOP_WITHIN;
    while !engine.state.borrow().in_flight.is_empty() {
        if !engine.change_before(deadline).await {
            break;
        }
    }
    tracing::info!("stopped; devices and claims stay as they are");
}

/// Starts the plain threads that listen to the kernel and to libvirt's folder.
fn start_listeners(
    engine: &Rc<Engine>,
    source: UeventSource,
    events: &mpsc::UnboundedSender<Event>,
) -> anyhow::Result<()> {
    let (to, roots) = (events.clone(), engine.roots.clone());
    std::thread::Builder::new().name("uevents".into()).spawn(move || {
        let ended = source.read_all(|message| {
            let events: Vec<Event> = match message {
                UeventMessage::Event(event) => {
                    let parent = event.affects().map(|affected| Event::Parent(affected.parent));
                    parent.into_iter().chain(event.functions(&roots).into_iter().map(Event::Function)).collect()
                }
                UeventMessage::Lost(why) => vec![Event::Lost(why)],
            };
            for event in events {
                // An error means that the daemon is stopping.
                let _ = to.send(event);
            }
        });
        if let Err(error) = ended {
            tracing::error!("{error}; the inventory is only as new as the last rescan");
        }
    })?;
    let (released, domains) = (engine.roots.released_dir(), engine.roots.libvirt_status_dir());
    let watch = mdevd_host::watch::Watch::new([released.clone(), domains])?;
    let to = events.clone();
    std::thread::Builder::new().name("watch".into()).spawn(move || {
        let ended = watch.read_all(|folder| {
            let _ = to.send(if folder == released { Event::Released } else { Event::Domains });
        });
        if let Err(error) = ended {
            tracing::error!("{error}; ended runs are only seen by the regular comparison");
        }
    })?;
    Ok(())
}
