//! The verbs, one for each module or small family, and the few phrases that they share.

mod claims;
mod doctor;
mod explain;
mod function;
mod generate;
mod list;
mod mdev;
mod metrics;
mod rows;
mod service;
mod show;
mod tree;
mod types;
mod vfs;
mod vgpu;
mod xml;

use mdevd_dbus::path::Object;

use crate::cli::Verb;
use crate::error::Error;
use crate::table::{BAD, Cell, GOOD, PLAIN};
use crate::view::{Claim, Host, Mdev};

/// What a verb has to say.
#[derive(Debug, Default)]
pub struct Said {
    /// The result, for people and programs: stdout.
    pub out: String,
    /// What is only for people: stderr.
    pub notes: Vec<String>,
    /// The exit status.
    pub code: u8,
}

impl From<String> for Said {
    fn from(out: String) -> Self {
        Self { out, ..Self::default() }
    }
}

/// Does what was typed.
pub async fn run(verb: Verb) -> Result<Said, Error> {
    match verb {
        Verb::List(args) => list::run(&args).await,
        Verb::Tree(args) => tree::run(&args).await,
        Verb::Doctor(args) => doctor::run(&args).await,
        Verb::Vfs(args) => vfs::run(&args).await,
        Verb::Bind(args) => function::bind(&args).await,
        Verb::Restore(args) => function::restore(&args).await,
        Verb::Configure(args) => function::configure(&args).await,
        Verb::VgpuType(args) => vgpu::run(&args).await,
        Verb::Show(args) => show::run(&args).await,
        Verb::Types(args) => types::run(&args).await,
        Verb::Create(args) => mdev::create(args).await,
        Verb::Remove(args) => mdev::remove(&args).await,
        Verb::Claims(output) => claims::list(&output).await,
        Verb::Claim(args) => claims::acquire(&args).await,
        Verb::Release(args) => claims::release(&args).await,
        Verb::Xml(args) => xml::run(&args).await,
        Verb::Explain(args) => explain::run(&args).await,
        Verb::Status(output) => service::status(&output).await,
        Verb::Metrics(args) => metrics::run(&args).await,
        Verb::Reconcile(args) => service::reconcile(&args).await,
        Verb::Rescan => service::rescan().await,
        Verb::Reload => service::reload().await,
        Verb::Generate(args) => generate::run(&args),
    }
}

/// What to think about when nothing offers types.
const NO_TYPES: &str = "neither mdev parents nor VFs with vGPU types: is the vendor's driver loaded? (the kernel lists the parents in /sys/class/mdev_bus)";

/// What to think about when there is nothing that a VM can be given.
const NO_DEVICES: &str =
    "mdevd sees neither PCI functions nor mdev parents on this host; hostdevctl doctor says what is missing";

/// `text`, or a dash where there is none.
fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A number as text, or a dash.
fn number<T: ToString>(number: Option<T>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A count with its noun.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Whose a claim is: `domain vm1`, `manual test`.
fn owner(claim: &Claim) -> String {
    format!("{} {}", claim.owner_kind, owner_name(claim))
}

/// The same in short, where the kind is clear or does not matter.
fn owner_name(claim: &Claim) -> String {
    match (claim.owner_name.as_str(), claim.owner_uuid.as_str(), claim.owner_uid) {
        ("", "", Some(uid)) => format!("uid {uid}"),
        ("", uuid, _) => uuid.to_owned(),
        (name, ..) => name.to_owned(),
    }
}

/// Whose an mdev is.
fn holder_of(mdev: &Mdev, host: &Host) -> String {
    match (host.claim_of(mdev), mdev.claim) {
        (Some(claim), _) => owner(claim),
        (None, Some(id)) => format!("claim {id}"),
        (None, None) if mdev.origin == "foreign" => "foreign".to_owned(),
        (None, None) => "no claim".to_owned(),
    }
}

/// A state in its colour.
fn state(state: &str) -> Cell {
    let style = match state {
        "ok" | "ready" => GOOD,
        "stuck" | "failed" | "gone" => BAD,
        _ => PLAIN,
    };
    Cell::styled(or_dash(state), style)
}

/// What an object is, for a person who meant another kind.
fn describe(object: &Object) -> String {
    match object {
        Object::Parent(name) => format!("parent {name}"),
        Object::Mdev(uuid) => format!("device {uuid}"),
        Object::Claim(id) => format!("claim {id}"),
        Object::Function(address) => format!("function {address}"),
    }
}

/// That a word stands for something, but for nothing that the verb is about.
pub fn not_one(word: &str, wanted: &str, found: &[Object]) -> Error {
    let mut list: Vec<String> = found.iter().take(8).map(describe).collect();
    if found.len() > list.len() {
        list.push(format!("{} more", found.len() - list.len()));
    }
    Error::Refused(format!("'{word}' is not {wanted}; it is {}", list.join(" and ")))
}
