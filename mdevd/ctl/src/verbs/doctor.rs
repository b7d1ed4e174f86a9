//! `doctor`: whether the host and its devices can give VMs what they need, and what to do where they cannot.

use mdevd_core::names::PciAddress;
use mdevd_dbus::path::Object;

use crate::card::range;
use crate::cli::Doctor;
use crate::client::{Client, functions};
use crate::error::Error;
use crate::json;
use crate::table::{BAD, BOLD, Cell, Fit, GOOD, ODD, Table, safe, terminal_width};
use crate::verbs::{Said, counted, not_one};
use crate::view::{Finding, Host};

/// Runs the verb.
pub async fn run(args: &Doctor) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let host = client.host().await?;
    let mut findings = Vec::new();
    match &args.device {
        None => findings = client.check(None).await?,
        Some(word) => {
            let found = client.find(word).await?;
            for device in devices(word, &found, &host)? {
                // The host is looked at with each of them; once is enough.
                let more = client.check(Some(&device)).await?;
                let new = |finding: &Finding| findings.iter().all(|known| !same(known, finding));
                let more: Vec<Finding> = more.into_iter().filter(new).collect();
                findings.extend(more);
            }
        }
    }
    let (of_devices, of_host): (Vec<Finding>, Vec<Finding>) =
        findings.into_iter().partition(|finding| is_device(&finding.subject, &host));
    let stands_in_the_way = |finding: &Finding| matches!(finding.verdict.as_str(), "needs-setup" | "refused");
    // That some device of the host is none for VMs is no reason to fail, unless it was asked for.
    let asked = of_devices.iter().filter(|_| args.device.is_some());
    let code = u8::from(of_host.iter().chain(asked).any(stands_in_the_way));
    if args.output.json {
        let all = of_host.iter().chain(&of_devices).map(json::finding).collect();
        return Ok(Said { out: json::document(&all), code, ..Said::default() });
    }
    let together = !args.all && args.device.is_none();
    Ok(Said { out: text(&of_host, &of_devices, together, &host, terminal_width()), code, ..Said::default() })
}

/// What `Check` is asked about: the function that a word means or an mdev is made on, or each function of a card.
fn devices(word: &str, found: &[Object], host: &Host) -> Result<Vec<String>, Error> {
    let functions: Vec<String> = host.without_own_vfs(&functions(found)).iter().map(ToString::to_string).collect();
    if !functions.is_empty() {
        return Ok(functions);
    }
    let parent = match found {
        [Object::Mdev(uuid)] => host.mdev(*uuid).map(|mdev| mdev.parent.clone()),
        _ => None,
    };
    match parent.and_then(|parent| parent.parse::<PciAddress>().ok()) {
        Some(address) => Ok(vec![address.to_string()]),
        None => Err(Error::Refused(format!(
            "{}\nthe doctor looks at PCI functions, and at the host: hostdevctl doctor",
            not_one(word, "a PCI function", found)
        ))),
    }
}

fn same(a: &Finding, b: &Finding) -> bool {
    (&a.subject, &a.verdict, &a.message) == (&b.subject, &b.verdict, &b.message)
}

/// Whether a finding is about a device, and not about the host.
fn is_device(subject: &str, host: &Host) -> bool {
    subject.parse::<PciAddress>().is_ok()
        || host.parents.iter().any(|parent| parent.name == subject)
        || subject.parse().is_ok_and(|uuid| host.mdev(uuid).is_some())
}

/// The host's findings, then those of devices; with `together` devices of which the same is said share a heading.
fn text(of_host: &[Finding], of_devices: &[Finding], together: bool, host: &Host, width: Option<usize>) -> String {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in of_devices {
        let alike = |group: &&mut Vec<&Finding>| group.first().is_some_and(|first| said(first) == said(finding));
        match groups.iter_mut().find(|group| together && alike(group)) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    // What can be given to VMs first; a device that was asked for keeps its findings together.
    if together {
        groups.sort_by_key(|group| group.first().map(|first| rank(&first.verdict)));
    }
    let mut lines = Lines::default();
    for finding in of_host {
        let subject = finding.subject.as_str();
        let about = if matches!(subject, "" | "host") { String::new() } else { format!("{subject}: ") };
        lines.add(&format!("{BOLD}host{BOLD:#}\n"), finding, &format!("{about}{}", finding.message));
    }
    for group in &groups {
        match group.as_slice() {
            [only] => lines.add(&heading(&only.subject, &what(only, host), width), only, &only.message),
            [first, ..] => {
                let count = counted(group.len(), "device");
                lines.add(&heading(&count, &subjects(group, host), width), first, &said(first).1);
            }
            [] => {}
        }
    }
    lines.render(width)
}

/// What a finding says of its device, whichever that is and whatever the number of its IOMMU group.
fn said(finding: &Finding) -> (&str, String, &str) {
    const GROUP: &str = "IOMMU group ";
    let message = finding.message.replace(&finding.subject, "it");
    let message = match message.split_once(GROUP) {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}its IOMMU group{after}")
        }
        None => message,
    };
    (&finding.verdict, message, &finding.fix)
}

fn rank(verdict: &str) -> usize {
    ["ready", "ready-with-warning", "needs-setup", "refused"].iter().position(|known| *known == verdict).unwrap_or(4)
}

fn heading(name: &str, about: &str, width: Option<usize>) -> String {
    let mut heading = Table::new(0, &[Fit::Keep, Fit::Wrap]);
    heading.row([Cell::styled(name, BOLD), about.into()]);
    heading.render(width)
}

/// What the device of a finding is.
fn what(finding: &Finding, host: &Host) -> String {
    let function = finding.subject.parse().ok().and_then(|address| host.function(address));
    function.map_or_else(String::new, |function| function.what())
}

/// The devices of several findings, those in ranges that follow one another.
fn subjects(findings: &[&Finding], host: &Host) -> String {
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding.subject.parse::<PciAddress>() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(finding.subject.clone()),
        }
    }
    addresses.sort_unstable();
    let place = |address| host.functions.binary_search_by_key(&address, |function| function.address).ok();
    let follows = |a: &PciAddress, b: &PciAddress| place(*a).zip(place(*b)).is_some_and(|(a, b)| a + 1 == b);
    let ranges = addresses.chunk_by(follows).filter_map(|chunk| match chunk {
        [first, .., last] => Some(range(*first, *last)),
        [only] => Some(only.to_string()),
        [] => None,
    });
    ranges.chain(names).collect::<Vec<_>>().join(", ")
}

/// Findings beneath their headings, each with what to do as it is to be typed.
struct Lines {
    table: Table,
    /// The heading of each, and what to do.
    around: Vec<(String, String)>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { table: Table::new(2, &[Fit::Keep, Fit::Wrap]), around: Vec::new() }
    }
}

impl Lines {
    fn add(&mut self, heading: &str, finding: &Finding, message: &str) {
        let style = match rank(&finding.verdict) {
            0 => GOOD,
            1 => ODD,
            _ => BAD,
        };
        let message = if message.is_empty() { &finding.reason } else { message };
        self.table.row([Cell::styled(&finding.verdict, style), message.into()]);
        let fix = finding.fix.lines().map(|line| format!("      {}\n", safe(line))).collect();
        self.around.push((heading.to_owned(), fix));
    }

    fn render(&self, width: Option<usize>) -> String {
        let mut out = String::new();
        let mut above = "";
        for ((heading, fix), row) in self.around.iter().zip(self.table.rows(width)) {
            if heading != above {
                out += heading;
                above = heading;
            }
            out += &row;
            out += fix;
        }
        out
    }
}
