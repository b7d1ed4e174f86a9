//! Where the log goes: the journal when systemd started the daemon, else standard error; how much of it can be changed at run time.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

static LEVEL: OnceLock<Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging, at `info`. Answers with what changes the level.
pub fn start() -> fn(Level) {
    let (level, handle) = reload::Layer::new(LevelFilter::INFO);
    // systemd says by this variable that standard error is the journal.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let terminal = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
    });
    let layers = journal.map(|layer| layer.with_syslog_identifier("mdevd".into()));
    // A second start in one process, as in a test, keeps the first.
    if tracing_subscriber::registry()
        .with(level)
        .with(layers.map(Layer::boxed))
        .with(terminal.map(Layer::boxed))
        .try_init()
        .is_ok()
    {
        let _ = LEVEL.set(handle);
    }
    |level| {
        if let Some(handle) = LEVEL.get() {
            let _ = handle.modify(|filter| *filter = LevelFilter::from_level(level));
        }
    }
}
