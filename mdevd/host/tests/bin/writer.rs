//! What the tests of this crate run instead of the daemon: its writer, a daemon that does nothing but one write, and one that does
//! nothing but look for holders, as another user.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mdevd_core::names::{DeviceKey, IommuGroupId, MdevUuid};
use mdevd_host::busy::BusyLocks;
use mdevd_host::holders::holders;
use mdevd_host::roots::Roots;
use mdevd_host::write::{VERBS, WriteOutcome, write, writer_main};

/// One of the writer's verbs, `daemon RUN KEY PATH VALUE`, or `holders`.
fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    if VERBS.iter().any(|known| verb == *known) {
        return writer_main(&verb, args);
    }
    if verb == "holders" {
        let device =
            (DeviceKey::Mdev(MdevUuid::derived(uuid::Uuid::NAMESPACE_OID, "none")), Some(IommuGroupId(u32::MAX)));
        for answer in holders(&Roots::default(), &[device]).values() {
            println!("{answer}");
        }
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let [run, key, path, value] = args.as_slice() else { return ExitCode::FAILURE };
    let locks = BusyLocks::new(&Roots { run: run.into(), ..Roots::default() });
    let (Ok(runtime), Ok(exe)) =
        (tokio::runtime::Builder::new_current_thread().enable_all().build(), std::env::current_exe())
    else {
        return ExitCode::FAILURE;
    };
    let deadline = Instant::now() + Duration::from_secs(600);
    match runtime.block_on(write(&exe, &locks, key, Path::new(path), value, deadline)) {
        WriteOutcome::Done => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
