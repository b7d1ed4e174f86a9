//! Processes of the real procfs.
#![allow(clippy::unwrap_used)]

use mdevd_host::process::{Alive, alive, command, start_time};
use mdevd_host::roots::Roots;

#[test]
fn this_very_process_is_alive_and_a_collected_child_is_not() {
    let roots = Roots::default();
    let own = std::process::id();
    let started = start_time(&roots, own);
    assert!(started.is_some());
    assert_eq!(alive(&roots, own, started), Alive::Known(true));
    assert!(!command(&roots, own).is_empty());
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    let started = start_time(&roots, pid);
    child.wait().unwrap();
    assert!(alive(&roots, pid, started.or(Some(0))).gone());
}
