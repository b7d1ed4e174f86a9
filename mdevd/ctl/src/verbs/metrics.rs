//! `metrics`: what mdevd lists, as numbers in Prometheus' text format, for the textfile collector of node_exporter.
//!
//! What counts kinds and states always has all of them, also those that are 0: an alert on one of them never looks at nothing. When
//! mdevd is away that is a number too, `mdevd_up 0`, and the only one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process;

use crate::card::Use;
use crate::cli::Metrics;
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::table::steers;
use crate::verbs::{Said, types};
use crate::view::{Function, Host, Mdev, Physical};

/// The labels of one series, by their order in the text.
type Labels = Vec<(&'static str, String)>;

/// Runs the verb.
pub async fn run(args: &Metrics) -> Result<Said, Error> {
    let mut said = match read().await {
        Ok(text) => Said::from(text),
        Err(error @ Error::NoDaemon(_)) => Said { out: down(), notes: vec![error.to_string()], code: error.code() },
        Err(error) => return Err(error),
    };
    if let Some(file) = &args.output {
        write(file, &std::mem::take(&mut said.out)).map_err(|error| {
            let file = file.display();
            Error::Refused(format!(
                "cannot write {file}: {error}\nits folder has to be there: the one that node_exporter was given as --collector.textfile.directory"
            ))
        })?;
    }
    Ok(said)
}

async fn read() -> Result<String, Error> {
    let client = Client::connect_to_running().await?;
    let manager = client.manager().await?;
    let (version, libvirt) = (manager.version().await?, manager.libvirt_version().await?);
    let problems = manager.problems().await?.len();
    Ok(text(&version, &libvirt, problems, &client.host().await?))
}

/// The text when there is nobody to ask.
fn down() -> String {
    let mut page = Page::default();
    page.up(false);
    page.0
}

fn text(version: &str, libvirt: &str, problems: usize, host: &Host) -> String {
    let mut page = Page::default();
    page.up(true);
    let versions = vec![("version", version.to_owned()), ("libvirt", libvirt.to_owned())];
    page.gauge("mdevd_info", "The versions of mdevd and of the libvirt that is installed.", [(versions, 1)]);
    page.gauge(
        "mdevd_problems",
        "What is wrong at present and needs a person, or time: hostdevctl status says what.",
        [(Labels::new(), count(problems))],
    );
    page.gauge("mdevd_devices", "Devices by kind and by who has them.", devices(host));
    page.gauge("mdevd_devices_stuck", "Devices with a write that does not come back from the kernel.", stuck(host));
    page.gauge("mdevd_claims", "Claims by kind of owner and by state.", claims(host));

    let pfs = || host.functions.iter().filter_map(|function| Some((function, function.physical()?)));
    let of_pfs = |value: &dyn Fn(&Function, &Physical) -> u64| -> Vec<(Labels, u64)> {
        pfs().map(|(pf, physical)| (vec![("pf", pf.address.to_string())], value(pf, physical))).collect()
    };
    page.gauge("mdevd_pf_vfs", "VFs that a PF has.", of_pfs(&|_, physical| physical.num_vfs));
    page.gauge("mdevd_pf_vfs_limit", "The most VFs that a PF can have.", of_pfs(&|_, physical| physical.total_vfs));
    page.gauge(
        "mdevd_pf_vfs_used",
        "VFs of a PF that are not free.",
        of_pfs(&|pf, _| count(host.vfs_of(pf.address).iter().filter(|vf| Use::of(vf, host) != Use::Free).count())),
    );

    let types = || host.parents.iter().flat_map(|parent| parent.types.iter().map(move |t| (parent, t)));
    let label = |parent: &str, id: &str, name: &str| {
        vec![("parent", parent.to_owned()), ("type", id.to_owned()), ("name", name.to_owned())]
    };
    page.gauge(
        "mdevd_mdev_type_available",
        "How many more mdevs of a type the kernel says it would create on a parent.",
        types().filter_map(|(parent, t)| Some((label(&parent.name, &t.id, &t.name), t.available?))),
    );
    page.gauge(
        "mdevd_mdev_type_used",
        "Mdevs of a type that exist on a parent.",
        types().map(|(parent, t)| (label(&parent.name, &t.id, &t.name), count(json::used(parent, &t.id, host)))),
    );

    let vgpus = |value: fn(&types::Vgpu<'_>) -> usize| -> Vec<(Labels, u64)> {
        let of_pf = |(pf, _): (&Function, &Physical)| {
            let labels = |id: u32, name: &str| {
                vec![("pf", pf.address.to_string()), ("type", id.to_string()), ("name", name.to_owned())]
            };
            let types = types::vgpus(pf.address, host).into_iter();
            types.map(|(id, t)| (labels(id, t.name), count(value(&t)))).collect::<Vec<_>>()
        };
        pfs().flat_map(of_pf).collect()
    };
    page.gauge("mdevd_vgpu_type_available", "VFs of a PF that could have a vGPU type now.", vgpus(|t| t.available));
    page.gauge("mdevd_vgpu_type_used", "VFs of a PF that have a vGPU type.", vgpus(|t| t.used));
    page.0
}

/// How many devices of each kind are had by whom.
fn devices(host: &Host) -> BTreeMap<Labels, u64> {
    let labels = |kind: &str, has: Use| vec![("kind", kind.to_owned()), ("use", has.as_str().to_owned())];
    let functions = ["pci", "pf", "vf"];
    let every = [Use::Claimed, Use::Foreign, Use::Free, Use::Host];
    let mut counts: BTreeMap<Labels, u64> =
        functions.iter().flat_map(|kind| every.map(|has| (labels(kind, has), 0))).collect();
    counts.extend([Use::Claimed, Use::Foreign].map(|has| (labels("mdev", has), 0)));
    let mdev = |mdev: &Mdev| labels("mdev", if mdev.claim.is_some() { Use::Claimed } else { Use::Foreign });
    let functions = host.functions.iter().map(|function| labels(function.role(), Use::of(function, host)));
    for labels in functions.chain(host.mdevs.iter().map(mdev)) {
        *counts.entry(labels).or_default() += 1;
    }
    counts
}

/// How many of each kind are stuck, parents too.
fn stuck(host: &Host) -> BTreeMap<Labels, u64> {
    let labels = |kind: &str| vec![("kind", kind.to_owned())];
    let mut counts: BTreeMap<Labels, u64> =
        ["pci", "pf", "vf", "mdev", "parent"].iter().map(|kind| (labels(kind), 0)).collect();
    let functions = host.functions.iter().map(|function| (function.role(), &function.state));
    let mdevs = host.mdevs.iter().map(|mdev| ("mdev", &mdev.state));
    let parents = host.parents.iter().map(|parent| ("parent", &parent.state));
    for (kind, _) in functions.chain(mdevs).chain(parents).filter(|(_, state)| state.as_str() == "stuck") {
        *counts.entry(labels(kind)).or_default() += 1;
    }
    counts
}

/// How many claims of each kind of owner are in each state.
fn claims(host: &Host) -> BTreeMap<Labels, u64> {
    let labels = |owner: &str, state: &str| vec![("owner", owner.to_owned()), ("state", state.to_owned())];
    let states = ["planned", "preparing", "ready", "releasing", "failed"];
    let mut counts: BTreeMap<Labels, u64> =
        ["domain", "manual"].iter().flat_map(|owner| states.map(|state| (labels(owner, state), 0))).collect();
    for claim in &host.claims {
        *counts.entry(labels(&claim.owner_kind, &claim.state)).or_default() += 1;
    }
    counts
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The text, as it grows.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn up(&mut self, up: bool) {
        self.gauge("mdevd_up", "Whether mdevd answers.", [(Labels::new(), u64::from(up))]);
    }

    /// One metric with its series, sorted by their labels; nothing when there are none.
    fn gauge(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (Labels, u64)>) {
        let series: BTreeMap<Labels, u64> = series.into_iter().collect();
        if series.is_empty() {
            return;
        }
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (labels, value) in series {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            self.0 += &format!("{name}{labels} {value}\n");
        }
    }
}

/// The value of a label. What could steer a terminal stands escaped, as it does in tables.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if steers(c) => {
                let _ = write!(out, "\\\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Puts the text where the collector reads it, whole or not at all. Until it is whole its name does not end in `.prom`, which is what
/// the collector looks for.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let name =
        file.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "this is not the name of a file"))?;
    let unfinished = file.with_file_name(format!(".{}.{}", name.to_string_lossy(), process::id()));
    // One of a process that was killed, and had this number.
    let _ = fs::remove_file(&unfinished);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).and_then(|mut out| {
        out.write_all(text.as_bytes())?;
        // The collector is an ordinary user.
        out.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&unfinished, file)
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_can_hold_anything() {
        for (value, text) in [
            ("GRID M60-0B", "GRID M60-0B"),
            (r#"a "b" \n"#, r#"a \"b\" \\n"#),
            ("two\nlines", r"two\nlines"),
            ("\u{1b}[2J\u{202e}", r"\\u{1b}[2J\\u{202e}"),
            ("größer", "größer"),
        ] {
            assert_eq!(escaped(value), text);
        }
    }

    #[test]
    fn series_are_sorted_and_a_metric_without_any_is_left_out() {
        let mut page = Page::default();
        page.gauge("b", "B.", [(vec![("x", "2".to_owned())], 1), (vec![("x", "1".to_owned())], 2)]);
        page.gauge("a", "A.", []);
        assert_eq!(page.0, "# HELP b B.\n# TYPE b gauge\nb{x=\"1\"} 2\nb{x=\"2\"} 1\n");
    }
}
