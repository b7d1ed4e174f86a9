//! A client from beginning to end: what there is, one device claimed, its element for a VM, and given back.
//!
//! `cargo run --example acquire -- TYPE`, as root or as somebody whom polkit lets.

use std::process::ExitCode;
use std::time::Duration;

use mdevd_dbus::wire::{number, text};
use mdevd_dbus::{
    BUS_NAME, ClaimProxy, ErrorName, ManagerProxy, Options, ParentProxy, TextDict, error, interface, path,
};
use zbus::connection::Builder;
use zbus::export::ordered_stream::OrderedStreamExt;
use zbus::fdo::ObjectManagerProxy;

/// A person may have to type a password first.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(mdev_type) = std::env::args().nth(1) else {
        eprintln!("usage: acquire TYPE");
        return ExitCode::from(2);
    };
    let Err(failure) = run(&mdev_type).await else { return ExitCode::SUCCESS };
    // The name is for the program, the message for people.
    match error::split(&failure) {
        (Some(ErrorName::NoCapacity), message) => eprintln!("all are taken: {message}"),
        (Some(name), message) => eprintln!("{name}: {message}"),
        (None, message) => eprintln!("mdevd cannot be reached: {message}"),
    }
    ExitCode::FAILURE
}

async fn run(mdev_type: &str) -> zbus::Result<()> {
    let connection = Builder::system().method_timeout(PATIENCE).build().await?;
    let manager = ManagerProxy::new(&connection).await?;
    println!("mdevd {}", manager.version().await?);

    // Everything there is, in one call.
    let objects = ObjectManagerProxy::builder(&connection).destination(BUS_NAME).path(path::ROOT).build().await?;
    for (object, interfaces) in objects.get_managed_objects().await? {
        if interfaces.keys().any(|name| name.as_str() == interface::PARENT) {
            let parent = ParentProxy::builder(&connection).path(object).build().await?;
            for offered in parent.types().await? {
                let free = number(&offered, "available").unwrap_or(0);
                println!("{}: {free} free of type {}", parent.name().await?, text(&offered, "id"));
            }
        }
    }

    let request = TextDict::from([("name", "gpu0"), ("type", mdev_type)].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let label = Options::from([("label", "an example".into())]);
    let claim = manager.acquire(&[request], &label).await?;
    let claim = ClaimProxy::builder(&connection).path(claim).build().await?;
    for grant in claim.grants().await? {
        println!("{} is {}", text(&grant, "request"), text(&grant, "device"));
    }
    println!("{}", claim.hostdev_xml(&Options::new()).await?);

    // Who wants to hear the end listens before it comes.
    let mut removed = objects.receive_interfaces_removed().await?;
    claim.release(&Options::new()).await?;
    while let Some(signal) = removed.next().await {
        if signal.args()?.object_path.as_str() == claim.inner().path().as_str() {
            println!("given back");
            break;
        }
    }
    Ok(())
}
