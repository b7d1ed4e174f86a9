//! A stand-in for polkit that says yes to everything: for the demonstration, where whoever runs it is not root and the bus is private.
//! `fakepolkit ADDRESS` prints a line when it is there, and stays until it is killed.

use std::process::ExitCode;

use mdevd_tests::harness::{FakePolkit, Verdict};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(address), None) = (args.next(), args.next()) else {
        eprintln!("Usage: fakepolkit D-BUS-ADDRESS");
        return ExitCode::from(2);
    };
    let _polkit = FakePolkit::start_at(&address, Verdict::Allow).await;
    println!("ready");
    std::future::pending().await
}
