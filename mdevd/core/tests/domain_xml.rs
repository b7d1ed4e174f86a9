//! Reading domains: what libvirt really writes, everything that must be refused, and what must not be.

#![allow(clippy::unwrap_used)] // outside #[test] functions as well: all of this file is tests
use mdevd_core::domain_xml::{Domain, DomainStatus, MAX_BYTES, mentions_requests, metadata_xml, request_element};
use mdevd_core::hostdev::{Hostdev, HostdevSource};
use proptest::prelude::*;

const UUID: &str = "0f154289-728c-42df-9e56-9b6c1be66e73";
const OURS: &str = "xmlns:mdevd='urn:mdevd:domain:1'";

fn data(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn mdev(uuid: &str, alias: Option<&str>) -> Hostdev {
    let source = HostdevSource::Mdev(uuid.parse().unwrap());
    let alias = alias.map(Into::into);
    Hostdev { source, model: "vfio-pci".into(), managed: false, alias, interface: false, mac: None, vlan: None }
}

fn pci(address: &str, alias: Option<&str>, interface: bool) -> Hostdev {
    let source = HostdevSource::Pci(address.parse().unwrap());
    let alias = alias.map(Into::into);
    Hostdev { source, model: String::new(), managed: true, alias, interface, mac: None, vlan: None }
}

/// A domain with this in its metadata and among its devices.
fn domain(metadata: &str, devices: &str) -> String {
    format!(
        "<domain><name>vm</name><uuid>{UUID}</uuid><metadata>{metadata}</metadata><devices>{devices}</devices></domain>"
    )
}

/// The same with our element around `requests`.
fn with_requests(requests: &str, devices: &str) -> String {
    domain(&format!("<mdevd:devices {OURS}>{requests}</mdevd:devices>"), devices)
}

fn requests(xml: &str) -> Vec<Vec<(String, String)>> {
    Domain::parse(xml).unwrap().requests
}

fn error(xml: &str) -> String {
    Domain::parse(xml).unwrap_err().to_string()
}

#[test]
fn what_libvirt_gives_a_hook() {
    for version in ["9.0", "11.3"] {
        for (op, running) in [("prepare", false), ("start", true), ("release", true)] {
            let domain = Domain::from_bytes(&data(&format!("hook-{op}-{version}.xml"))).unwrap();
            assert_eq!(domain.uuid.to_string(), UUID);
            assert_eq!(domain.name, "gpu vm & more");
            assert_eq!(
                domain.requests,
                [
                    owned(&[("name", "tty0"), ("type", "mtty-1"), ("uuid", "aaaaaaaa-0000-4000-8000-000000000001")]),
                    owned(&[("name", "tty1"), ("type", "mtty-2"), ("parent", "mtty")]),
                ]
            );
            // libvirt names devices only once it has started
            let named = |alias| running.then_some(alias);
            assert_eq!(
                domain.hostdevs,
                [
                    Hostdev {
                        mac: Some("52:54:00:6d:90:02".parse().unwrap()),
                        ..pci("0000:01:10.0", named("hostdev0"), true)
                    },
                    mdev("aaaaaaaa-0000-4000-8000-000000000001", Some("ua-mdevd-tty0")),
                    mdev("aaaaaaaa-0000-4000-8000-000000000002", Some("ua-mdevd-tty1")),
                    pci("0000:03:00.0", named("hostdev1"), false),
                ],
                "{op} {version}"
            );
        }
        let plain = Domain::from_bytes(&data(&format!("hook-prepare-plain-{version}.xml"))).unwrap();
        assert_eq!(plain.name, "vm1");
        assert!(plain.requests.is_empty());
        assert_eq!(plain.hostdevs, [mdev("aaaaaaaa-0000-4000-8000-000000000001", None)]);
    }
}

#[test]
fn what_libvirt_keeps_of_a_running_domain() {
    for (version, pid) in [("9.0", 337), ("11.3", 387)] {
        let status = DomainStatus::from_bytes(&data(&format!("status-{version}.xml"))).unwrap();
        assert_eq!((status.pid, status.state.as_str()), (Some(pid), "running"));
        assert_eq!(status.domain, Domain::from_bytes(&data(&format!("hook-start-{version}.xml"))).unwrap());
    }
    let status = |head: &str| DomainStatus::parse(&format!("<domstatus {head}>{}</domstatus>", domain("", "")));
    for head in ["state='shutoff' pid='0'", "state='shutoff' pid='-1'", "state='shutoff'"] {
        assert_eq!(status(head).unwrap().pid, None, "{head}");
    }
    assert_eq!(
        status("pid='x'").unwrap_err().to_string(),
        "the domain XML is refused at line 1, column 1: pid='x' is no number"
    );
    let named = |xml: &str| DomainStatus::parse(xml).unwrap_err().to_string();
    assert_eq!(
        named(&domain("", "")),
        "the domain XML is refused at line 1, column 1: the root element is <domain>, not libvirt's <domstatus>"
    );
    assert_eq!(named("<domstatus state='running' pid='1'/>"), "the domain XML is refused: the domain has no <uuid>");
}

#[test]
fn requests_by_any_prefix() {
    let expected = [owned(&[("name", "a")])];
    for metadata in [
        format!("<mdevd:devices {OURS}><mdevd:request name='a'/></mdevd:devices>"),
        "<devices xmlns='urn:mdevd:domain:1'><request name='a'/></devices>".into(),
        "<x:devices xmlns:x='urn:mdevd:domain:1'><x:request name='a'></x:request></x:devices>".into(),
        // the prefix is bound again on the way, and the outer meaning comes back
        "<o:devices xmlns:o='urn:mdevd:domain:1'><o:note xmlns:o='urn:else'><o:request name='b'/></o:note><o:request name='a'/></o:devices>".into(),
        "<devices xmlns='urn:mdevd:domain:1'><request name='a' xmlns:unused='urn:else'/></devices>".into(),
        // elements of others, beside ours and inside
        "<i:info xmlns:i='urn:else'><devices/></i:info><devices xmlns='urn:mdevd:domain:1'><e xmlns='urn:else'/><!-- -->\n<request name='a'/></devices>".into(),
    ] {
        assert_eq!(requests(&domain(&metadata, "")), expected, "{metadata}");
    }
}

#[test]
fn only_the_right_place_counts() {
    for metadata in [
        "",
        "<devices/>",
        "<devices><request name='a'/></devices>",
        "<x:devices xmlns:x='urn:mdevd:domain:2'><x:request name='a'/></x:devices>",
        "<i:info xmlns:i='urn:else'><devices xmlns='urn:mdevd:domain:1'><request name='a'/></devices></i:info>",
        "<mdevd:devices><mdevd:request name='undeclared'/></mdevd:devices>",
    ] {
        assert!(requests(&domain(metadata, "")).is_empty(), "{metadata}");
    }
    let elsewhere = format!(
        "<domain><name>vm</name><uuid>{UUID}</uuid><devices xmlns='urn:mdevd:domain:1'><request name='a'/></devices></domain>"
    );
    assert!(requests(&elsewhere).is_empty());
}

#[test]
fn attributes_are_taken_as_they_are() {
    let xml = with_requests(
        "<mdevd:request name=\"a'b\" note='&lt;&amp;&#x41;&quot;\n' nmae='' x:y='1' xmlns:x='urn:else'/>",
        "",
    );
    assert_eq!(requests(&xml), [owned(&[("name", "a'b"), ("note", "<&A\" "), ("nmae", ""), ("x:y", "1")])]);
}

#[test]
fn hostdevs_of_all_kinds() {
    let devices = "
      <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
      <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source></hostdev>
      <hostdev mode='capabilities' type='storage'><source><block>/dev/sdf1</block></source></hostdev>
      <interface type='network'><source network='default'/></interface>
      <interface type='hostdev'><source><address type='usb' bus='0' device='2'/></source></interface>
      <hostdev type='mdev' model='vfio-ap'><source><address uuid='AAAAAAAA-0000-4000-8000-00000000000F'/></source></hostdev>
      <hostdev mode='subsystem' type='pci' managed='yes'>
        <source><address domain='65536' bus='0x3b' slot='31' function='07'/></source>
        <address type='pci' domain='0x0000' bus='0x09' slot='0x00' function='0x0'/>
      </hostdev>
      <interface type='hostdev' managed='yes'><source><address type='pci' bus='0X0a'/></source></interface>
      <hostdev mode='subsystem' type='pci' managed='yes'>
        <source><address domain='0x0000' bus='0x06' slot='0x02' function='0x5'/></source>
        <alias name='ua-x'/>
      </hostdev>";
    let hostdevs = Domain::parse(&with_requests("<mdevd:request/>", devices)).unwrap().hostdevs;
    let mut ap = mdev("aaaaaaaa-0000-4000-8000-00000000000f", None);
    ap.model = "vfio-ap".into();
    assert_eq!(
        hostdevs,
        [
            ap,
            pci("10000:3b:1f.7", None, false),
            pci("0000:0a:00.0", None, true),
            pci("0000:06:02.5", Some("ua-x"), false)
        ]
    );
}

#[test]
fn what_an_interface_sets() {
    let (mac, vlan) = ("<mac address='52:54:00:AA:bb:cc'/>", "<vlan><tag id='42'/></vlan>");
    let source = "<source><address type='pci' bus='0x0a'/></source>";
    let of = |text: &str| {
        let [hostdev] = Domain::parse(&with_requests("<mdevd:request/>", text)).unwrap().hostdevs.try_into().unwrap();
        (hostdev.mac.map(|mac| mac.to_string()), hostdev.vlan)
    };
    let interface = |inside: &str| of(&format!("<interface type='hostdev'>{inside}</interface>"));
    assert_eq!(interface(&format!("{mac}{source}{vlan}")), (Some("52:54:00:aa:bb:cc".into()), Some(42)));
    assert_eq!(interface(source), (None, None));
    for (vlan, id) in [
        ("<vlan><tag id='0x2a'/></vlan>", Some(42)),
        ("<vlan><tag id='4095' nativeMode='untagged'/></vlan>", Some(4095)),
        ("<vlan><tag id='0'/></vlan>", None),
        ("<vlan/>", None),
        // libvirt starts no VM with these
        ("<vlan><tag id='42'/><tag id='43'/></vlan>", None),
        ("<vlan trunk='yes'><tag id='42'/></vlan>", None),
        // a tag elsewhere is none
        ("<tag id='42'/>", None),
        ("<bandwidth><vlan><tag id='42'/></vlan></bandwidth>", None),
    ] {
        assert_eq!(interface(&format!("{vlan}{source}")), (None, id), "{vlan}");
    }
    // in a hostdev they mean nothing, whatever they say
    let plain = format!("<hostdev type='pci'>{source}{mac}<vlan><tag id='x'/></vlan></hostdev>");
    assert_eq!(of(&plain), (None, None));
    for (inside, why) in [
        ("<mac address='1'/>", "its <mac>: '1' is not a MAC address: it must be like 52:54:00:6d:90:02"),
        ("<vlan><tag id='4096'/></vlan>", "id='4096' of the <tag> in its <vlan> is no number from 0 to 4095"),
        ("<vlan><tag/></vlan>", "id='' of the <tag> in its <vlan> is no number from 0 to 4095"),
    ] {
        let device = format!("<interface type='hostdev'>{source}{inside}</interface>");
        assert_eq!(Domain::parse(&domain("", &device)).unwrap().hostdevs, []);
        let xml = with_requests("<mdevd:request name='a'/>", &format!("\n{device}"));
        assert_eq!(error(&xml), format!("the domain XML is refused at line 2, column 1: <interface>: {why}"));
    }
}

#[test]
fn a_bad_hostdev_matters_only_next_to_requests() {
    for (devices, why) in [
        (
            "<hostdev type='mdev'><source><address uuid='c2177883f1bb47f0914d32a22e3a8804'/></source></hostdev>",
            "<hostdev>: 'c2177883f1bb47f0914d32a22e3a8804' is not a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804): it must have 36 characters",
        ),
        (
            "<hostdev type='mdev'><source><address/></source></hostdev>",
            "<hostdev>: the <address> in its <source> has no uuid",
        ),
        ("<hostdev type='mdev'/>", "<hostdev>: it has no <address> in its <source>"),
        (
            "<hostdev type='pci'><source><address slot='0x20'/></source></hostdev>",
            "<hostdev>: slot='0x20' in the <address> in its <source> is no number from 0 to 0x1f",
        ),
        (
            "<interface type='hostdev'><source><address type='pci' bus='-1'/></source></interface>",
            "<interface>: bus='-1' in the <address> in its <source> is no number from 0 to 0xff",
        ),
        (
            "<hostdev type='pci'><source><address function='0x'/></source></hostdev>",
            "<hostdev>: function='0x' in the <address> in its <source> is no number from 0 to 0x7",
        ),
    ] {
        assert_eq!(Domain::parse(&domain("", devices)).unwrap().hostdevs, []);
        assert_eq!(Domain::parse(&with_requests("", devices)).unwrap().hostdevs, []);
        let xml = with_requests("<mdevd:request name='a'/>", &format!("\n  {devices}"));
        assert_eq!(error(&xml), format!("the domain XML is refused at line 2, column 3: {why}"));
    }
}

#[test]
fn requests_in_the_wrong_place_are_refused() {
    for (metadata, blamed, why) in [
        (
            format!("<mdevd:devices {OURS}/><devices xmlns='urn:mdevd:domain:1'/>"),
            "<devices ",
            "a second <devices> of namespace urn:mdevd:domain:1 in the metadata, which libvirt would silently drop: put all requests into one",
        ),
        (
            format!("<mdevd:request {OURS} name='a'/>"),
            "<mdevd:request ",
            "<mdevd:request> in the metadata: of namespace urn:mdevd:domain:1 only <devices> belongs there",
        ),
        (
            format!("<mdevd:devices {OURS}><mdevd:requst/></mdevd:devices>"),
            "<mdevd:requst",
            "<mdevd:requst> among the requests: only <request> belongs there",
        ),
        (
            format!("<mdevd:devices {OURS}><request/></mdevd:devices>"),
            "<request",
            "<request> among the requests is not in namespace urn:mdevd:domain:1: does it lack the prefix?",
        ),
        (
            format!("<mdevd:devices {OURS}><mdevd:request><mdevd:type/></mdevd:request></mdevd:devices>"),
            "<mdevd:type",
            "<mdevd:type> inside a request: a request has attributes only",
        ),
    ] {
        let xml = domain(&metadata, "");
        let column = xml.find(blamed).unwrap() + 1;
        assert_eq!(error(&xml), format!("the domain XML is refused at line 1, column {column}: {why}"));
        // Under a domain that runs they may have become so: it is still the one it is.
        let plain = Domain::parse(&domain("", "")).unwrap();
        assert_eq!(Domain::from_bytes_once_started(xml.as_bytes()), Ok(plain.clone()), "{metadata}");
        assert_eq!(DomainStatus::parse(&format!("<domstatus>{xml}</domstatus>")).unwrap().domain, plain, "{metadata}");
    }
    // two <metadata> do not get around it
    let ours = format!("<metadata><mdevd:devices {OURS}/></metadata>");
    assert!(error(&format!("<domain>{ours}{ours}</domain>")).contains("a second <mdevd:devices>"));
}

#[test]
fn hostile_documents_are_refused() {
    let bomb =
        "<!DOCTYPE domain [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>\n<domain><name>&b;</name></domain>";
    let long = "x".repeat(100);
    for (xml, why) in [
        (String::new(), ": it is empty".to_owned()),
        (" \n\t".into(), ": it is empty".into()),
        ("\u{feff}".into(), " at line 1, column 1: there is no <domain> in it".into()),
        ("<?xml version='1.0'?><!-- -->".into(), " at line 1, column 30: there is no <domain> in it".into()),
        ("vm1".into(), " at line 1, column 1: text outside the root element".into()),
        (bomb.into(), " at line 1, column 1: a DOCTYPE, which is not read here; take it out".into()),
        ("<domain>\n <name>&b;</name></domain>".into(), " at line 2, column 8: an entity that is not one of XML's own; a '&' itself is written '&amp;'".into()),
        (
            "<domain>\n <os a='&b;'/></domain>".into(),
            " at line 2, column 2: the attribute 'a' of <os>: an entity that is not one of XML's own; a '&' itself is written '&amp;'"
                .into(),
        ),
        ("<domain><name>&#27;[2J</name></domain>".into(), " at line 1, column 15: a reference to a character that XML does not have".into()),
        ("<domain><name>&#0;</name></domain>".into(), " at line 1, column 15: a reference to a character that XML does not have".into()),
        ("<domain a='&#27;'/>".into(), " at line 1, column 1: the attribute 'a' of <domain> has a control character in it".into()),
        ("<domain a='<'/>".into(), " at line 1, column 1: the attribute 'a' of <domain> has a '<' in it".into()),
        ("<domain>\n <name>v\0</name></domain>".into(), " at line 2, column 9: a NUL byte".into()),
        ("<domain>é\u{1b}</domain>".into(), " at line 1, column 10: the control character 0x1b".into()),
        ("<domain/><domain/>".into(), " at line 1, column 10: a second root element, <domain>".into()),
        ("<domain/>\nx".into(), " at line 1, column 10: text outside the root element".into()),
        ("<network/>".into(), " at line 1, column 1: the root element is <network>, not libvirt's <domain>".into()),
        (
            "<domain xmlns='urn:else'/>".into(),
            " at line 1, column 1: the root element is <domain>, not libvirt's <domain>".into(),
        ),
        ("<domain><a></domain>".into(), " at line 1, column 12: <a> is closed by </domain>".into()),
        ("<domain/></a>".into(), " at line 1, column 10: </a> closes nothing".into()),
        ("<domain><a>".into(), " at line 1, column 12: it ends in the middle; elements still open: 2".into()),
        ("<domain><a".into(), " at line 1, column 9: tag not closed: `>` not found before end of input".into()),
        ("<domain a='1' b='2' a='3'/>".into(), " at line 1, column 1: in <domain>: the attribute 'a' is there twice".into()),
        ("<domain a=1/>".into(), " at line 1, column 1: in <domain>: the value of an attribute is not quoted".into()),
        ("<domain a/>".into(), " at line 1, column 1: in <domain>: an attribute has no value".into()),
        (format!("<{long}/>"), format!(" at line 1, column 1: the root element is <{}…>, not libvirt's <domain>", &long[..80])),
        (format!("<domain><name>vm</name><uuid>{UUID}</uuid>"), " at line 1, column 73: it ends in the middle; elements still open: 1".into()),
        (format!("<domain><uuid>{UUID}</uuid></domain>"), ": the domain has no <name>".into()),
        (format!("<domain><name/><uuid>{UUID}</uuid></domain>"), ": the domain has no <name>".into()),
        ("<domain><name>vm</name></domain>".into(), ": the domain has no <uuid>".into()),
        (
            "<domain><name>vm</name><uuid>1</uuid></domain>".into(),
            " at line 1, column 31: the domain's <uuid>: '1' is not a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804): \
             it must have 36 characters"
                .into(),
        ),
    ] {
        let error = error(&xml);
        assert_eq!(error, format!("the domain XML is refused{why}"), "{xml}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

/// However the XML is broken, the message says nothing of what stands in a value or a text: it may be a password.
#[test]
fn no_message_quotes_a_value_or_a_text() {
    const SECRET: &str = "hunter2canary";
    for broken in [
        format!("<graphics passwd={SECRET}/>"),
        format!("<graphics passwd='{SECRET}/>"),
        format!("<graphics passwd='a'{SECRET}'/>"),
        format!("<graphics passwd='a' {SECRET}/>"),
        format!("<graphics passwd={SECRET} {SECRET}/>"),
        format!("<graphics passwd='&{SECRET};'/>"),
        format!("<graphics passwd='&{SECRET}'/>"),
        format!("<graphics passwd='&#{SECRET};'/>"),
        format!("<graphics passwd='a<{SECRET}'/>"),
        format!("<graphics passwd='{SECRET}&#1;'/>"),
        format!("<graphics passwd='{SECRET}' passwd='{SECRET}'/>"),
        format!("<title>&{SECRET};</title>"),
        format!("<title>&{SECRET}</title>"),
        format!("<title>&#{SECRET};</title>"),
        format!("<title>{SECRET}</tilte>"),
        format!("<title>{SECRET}"),
        format!("<title>{SECRET}\u{1b}</title>"),
        format!("<title><![CDATA[{SECRET}</title>"),
        format!("<title><!-- {SECRET} -- ></title>"),
        format!("<?{SECRET}"),
        format!("</domain>{SECRET}"),
        format!("<qemu:arg value='secret,id=s0,data={SECRET}'>"),
    ] {
        let error = error(&format!("<domain><name>vm</name><uuid>{UUID}</uuid>{broken}</domain>"));
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn nesting_next_to_requests_ends_at_64() {
    // four levels of the document itself come first
    let nested = |levels: usize| {
        let (open, close) = ("<a>".repeat(levels), "</a>".repeat(levels));
        with_requests(&format!("<x:a xmlns:x='urn:else'>{open}{close}</x:a>"), "")
    };
    assert!(Domain::parse(&nested(60)).is_ok());
    for levels in [61, 100, 1_000_000] {
        let xml = nested(levels);
        let blamed = xml.find("<a>").unwrap() + 60 * "<a>".len() + 1;
        assert_eq!(
            error(&xml),
            format!("the domain XML is refused at line 1, column {blamed}: elements nested more than 64 deep")
        );
    }
    // A domain that runs already is known all the same. libvirt's parser ends at 256 levels.
    for levels in [61, 300] {
        assert_eq!(Domain::from_bytes_once_started(nested(levels).as_bytes()).unwrap().name, "vm");
    }
}

#[test]
fn bytes_that_are_no_text_or_too_many_are_refused() {
    let error = |bytes: &[u8]| Domain::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(
        error(b"<domain>\n<name>\xff"),
        "the domain XML is refused at line 2, column 7: it is not UTF-8 (byte 0xff)"
    );
    assert_eq!(error(b"<domain>\xc3"), "the domain XML is refused at line 1, column 9: it is not UTF-8 (byte 0xc3)");
    let utf16: Vec<u8> = "<domain/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(error(&utf16), "the domain XML is refused at line 1, column 2: a NUL byte");
    let mut large = domain("", "").into_bytes();
    large.resize(MAX_BYTES, b' ');
    assert!(Domain::from_bytes(&large).is_ok());
    large.resize(9 << 20, b' ');
    assert_eq!(error(&large), "the domain XML is refused: it has 9437184 bytes, more than 8 MiB");
}

#[test]
fn a_domain_without_requests_is_judged_by_xml_alone() {
    let deep = format!("<x:a xmlns:x='urn:else'>{}{}</x:a>", "<a>".repeat(2000), "</a>".repeat(2000));
    let xml = domain(&deep, "");
    assert!(!mentions_requests(xml.as_bytes()));
    assert_eq!(Domain::parse(&xml).unwrap().name, "vm");
    assert!(mentions_requests(with_requests("", "").as_bytes()));
}

#[test]
fn a_long_backing_chain_is_no_attack() {
    let disk = |images: usize| {
        let (open, close) = (
            "<backingStore type='file'><format type='qcow2'/><source file='x'/>".repeat(images),
            "</backingStore>".repeat(images),
        );
        with_requests("<mdevd:request name='a'/>", &format!("<disk>{open}{close}</disk>"))
    };
    assert_eq!(requests(&disk(200)).len(), 1);
    assert!(error(&disk(300)).ends_with("elements nested more than 64 deep"));
}

#[test]
fn large_documents_take_linear_time() {
    // quadratic behaviour in any of these would show as minutes
    let attributes: String = (0..200_000).map(|n| format!(" a{n}=''")).collect();
    assert!(Domain::parse(&domain(&format!("<a{attributes}/>"), "")).is_ok());
    let empty = "<a/>".repeat(300_000);
    assert!(Domain::parse(&with_requests("", &empty)).is_ok());
    let bindings: String = (0..100_000).map(|n| format!(" xmlns:p{n}='u'")).collect();
    assert!(error(&domain(&format!("<a{bindings}/>"), "")).contains("4096"));
}

#[test]
fn the_metadata_that_is_printed() {
    let requests =
        [owned(&[("name", "gpu0"), ("pool", "gold")]), owned(&[("name", "a\"b"), ("type", "<&>"), ("numa node", "1")])];
    assert_eq!(
        metadata_xml(&requests),
        "<metadata>\n  \
           <mdevd:devices xmlns:mdevd=\"urn:mdevd:domain:1\">\n    \
             <mdevd:request name=\"gpu0\" pool=\"gold\"/>\n    \
             <mdevd:request name=\"a&quot;b\" type=\"&lt;&amp;&gt;\" numa_node=\"1\"/>\n  \
           </mdevd:devices>\n\
         </metadata>\n"
    );
    assert_eq!(request_element(&[]), "<mdevd:request/>");
    // what libvirt makes of it is, but for the indentation, what was printed
    for version in ["9.0", "11.3"] {
        let recorded = data(&format!("hook-prepare-{version}.xml"));
        let printed = metadata_xml(&Domain::from_bytes(&recorded).unwrap().requests);
        let inner: String = printed.lines().filter(|l| !l.contains("metadata>")).map(|l| format!("  {l}\n")).collect();
        assert!(String::from_utf8(recorded).unwrap().contains(&inner), "{inner}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn printed_requests_are_read_back(
        written in proptest::collection::vec(proptest::collection::btree_map("[a-z][a-z-]{0,9}", "[\\PC\t\n\r]{0,12}", 0..5), 0..4)
    ) {
        let written: Vec<Vec<(String, String)>> =
            written.into_iter().map(|request| request.into_iter().filter(|(key, _)| key != "xmlns").collect()).collect();
        let xml = format!("<domain><name>vm</name><uuid>{UUID}</uuid>{}</domain>", metadata_xml(&written));
        prop_assert_eq!(requests(&xml), written);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = Domain::from_bytes(&bytes);
        let _ = DomainStatus::from_bytes(&bytes);
    }

    #[test]
    fn no_damage_to_a_document_panics(
        file in prop::sample::select(vec!["hook-prepare-9.0.xml", "hook-start-11.3.xml", "status-11.3.xml"]),
        cut in any::<prop::sample::Index>(), from in any::<prop::sample::Index>(), len in 0usize..40, by in "[<>&;'\"=/! a-z\\[\\]-]{0,6}|\\PC{0,4}"
    ) {
        let mut bytes = data(file);
        let start = from.index(bytes.len());
        let end = (start + len).min(bytes.len());
        bytes.splice(start..end, by.into_bytes());
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len() + 1)]] {
            for error in [Domain::from_bytes(bytes).err(), DomainStatus::from_bytes(bytes).err()].into_iter().flatten() {
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn no_sequence_of_pieces_panics(pieces in proptest::collection::vec(prop::sample::select(vec![
        "<domain>", "</domain>", "<name>", "</name>", "<uuid>", "</uuid>", "<metadata>", "</metadata>", "<devices>", "</devices>",
        "<devices xmlns='urn:mdevd:domain:1'>", "<request name='a'/>", "<request", "<hostdev type='mdev'>", "</hostdev>", "<source>",
        "</source>", "<address uuid='1'/>", "<![CDATA[", "]]>", "<!--", "-->", "&amp;", "&x;", "&#x", ";", "<?xml version='1.0'?>", "<!DOCTYPE a [", "\u{feff}", "vm", UUID, "'", "xmlns:xml=''", "xmlns:a=''",
    ]), 0..40)) {
        let _ = Domain::parse(&pieces.concat());
        let _ = DomainStatus::parse(&pieces.concat());
    }
}
