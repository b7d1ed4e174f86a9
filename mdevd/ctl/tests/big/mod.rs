//! A host with two GPUs of 32 VFs, two network cards of 64, four whole cards and a mainboard, on one screen.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fake::{Fake, vm};
use crate::{are_documented, golden, hostdevctl, keys, run, stderr, stdout, terminal};

/// The golden file's name, the words, and the exit status.
const READING: [(&str, &[&str], i32); 17] = [
    ("big-list", &["list"], 0),
    ("big-list-all", &["list", "--all"], 0),
    ("big-list-vf", &["list", "--kind", "vf"], 0),
    ("big-list-mdev", &["list", "--kind", "mdev"], 0),
    ("big-tree", &["tree"], 0),
    ("big-show-pf", &["show", "41:00.0"], 0),
    ("big-show-vgpu", &["show", "41:00.4"], 0),
    ("big-show-nic-vf", &["show", "3b:01.0"], 0),
    ("big-show-card", &["show", "82:00"], 0),
    ("big-show-display", &["show", "0000:00:02.0"], 0),
    ("big-show-claim", &["show", "vm20"], 0),
    ("big-vfs", &["vfs", "enp59s0f0"], 0),
    ("big-types", &["types"], 0),
    ("big-claims", &["claims"], 0),
    ("big-explain", &["explain", "kind=vf,pf=41:00.0"], 0),
    ("big-doctor", &["doctor"], 0),
    ("big-doctor-device", &["doctor", "a2:00.0"], 1),
];

#[test]
fn a_big_host_is_readable() {
    let fake = Fake::start_big();
    let mut all = BTreeSet::new();
    for (name, words, code) in READING {
        let output = run(&fake, words);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stderr(&output));
        golden(&format!("{name}.txt"), stdout(&output));

        let output = hostdevctl(&fake.bus.address, words).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name} --json: {}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json.is_array(), name != "big-vfs", "{name} --json");
        keys(&json, &mut all);
        // The others are long, and made of the same pieces.
        if !["big-list", "big-list-all", "big-list-vf", "big-tree", "big-vfs", "big-explain", "big-doctor"]
            .contains(&name)
        {
            golden(&format!("{name}.json"), stdout(&output));
        }
        for columns in [60, 80, 120] {
            let (text, _) = terminal::run(columns, hostdevctl(&fake.bus.address, words).env("NO_COLOR", "1"));
            // What there is to copy is never broken, and what is for people only comes as it is.
            let of_table = |line: &&str| !line.starts_with("      ") && !line.starts_with("hostdevctl: ");
            for line in text.lines().filter(of_table) {
                assert!(line.chars().count() <= usize::from(columns), "{name} at {columns}: {line}");
            }
            if columns >= 80 {
                golden(&format!("{name}.{columns}-columns.txt"), &text);
            }
        }
    }
    are_documented(&all);
}

#[test]
fn a_list_is_short_and_says_what_it_leaves_out() {
    let fake = Fake::start_big();
    let output = run(&fake, &["list"]);
    assert!(stdout(&output).lines().count() <= 16, "{}", stdout(&output));
    assert_eq!(stderr(&output), "hostdevctl: 7 more functions are bridges or the host's own: hostdevctl list --all\n");
    let output = run(&fake, &["tree"]);
    assert!(stdout(&output).lines().count() <= 60, "{}", stdout(&output));
    // With --all nothing is left out: a line for each function.
    let output = run(&fake, &["tree", "--all"]);
    assert_eq!(stderr(&output), "");
    let json: Value = serde_json::from_slice(&run(&fake, &["list", "--all", "--json"]).stdout).unwrap();
    let entries = json.as_array().unwrap();
    let functions: Vec<&str> = entries.iter().filter_map(|entry| entry["function"]["address"].as_str()).collect();
    assert_eq!(functions.len(), 2 * 33 + 64 + 64 + 3 + 4 + 3 + 7);
    for address in functions {
        assert!(stdout(&output).contains(address), "{address} is not in the tree");
    }
    let names: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    let once: BTreeSet<&&str> = names.iter().collect();
    assert_eq!(once.len(), names.len(), "a parent that is a function is one entry");
}

#[test]
fn json_of_kinds_has_only_those() {
    let fake = Fake::start_big();
    for kind in ["pci", "vf", "mdev"] {
        let output = run(&fake, &["list", "--json", "--kind", kind]);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let entries = json.as_array().unwrap();
        assert!(!entries.is_empty(), "{kind}");
        for entry in entries {
            assert!(entry["kinds"].as_array().unwrap().contains(&kind.into()), "{kind}: {entry}");
        }
    }
    let output = run(&fake, &["tree", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let gpu = json.as_array().unwrap().iter().find(|card| card["card"] == "0000:41:00.0").unwrap();
    let card = json.as_array().unwrap().iter().find(|card| card["card"] == "0000:82:00").unwrap();
    golden("big-tree-card.json", &format!("{card:#}\n"));
    golden("big-vfs-none.json", stdout(&run(&fake, &["vfs", "enp59s0f1", "--json"])));
    golden("big-vgpu-type.json", stdout(&run(&fake, &["vgpu-type", "c1:00.7", "--json"])));
    assert_eq!(gpu["functions"][0]["virtual_functions"].as_array().unwrap().len(), 32);
    assert_eq!(gpu["functions"][0]["virtual_functions"][0]["vf"]["vgpu_type"]["name"], "NVIDIA L40S-4Q");
}

#[test]
fn verbs_for_functions_say_what_they_mean() {
    let fake = Fake::start_big();
    let done = |words: &[&str], notes: &str, call: &str| {
        let output = run(&fake, words);
        let said = format!("hostdevctl: {notes}\n");
        assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "", said.as_str()), "{words:?}");
        assert_eq!(fake.calls(), [call], "{words:?}");
    };
    done(
        &["bind", "a2:00.0", "--force", "A2:00.0"],
        "0000:a2:00.0 is bound to vfio-pci; for the XML of a VM: hostdevctl xml 0000:a2:00.0; to give it back: hostdevctl restore 0000:a2:00.0",
        "Bind 0000:a2:00.0 vfio-pci {force=\"0000:a2:00.0\"}",
    );
    done(
        &["bind", "0000:3b:01.0"],
        "nothing to do: 0000:3b:01.0 is bound to vfio-pci already, and yours",
        "Bind 0000:3b:01.0 vfio-pci {}",
    );
    done(
        &["bind", "10000:E1:00.0", "mlx5_vfio_pci"],
        "10000:e1:00.0 is bound to mlx5_vfio_pci; for the XML of a VM: hostdevctl xml 10000:e1:00.0; to give it back: hostdevctl restore 10000:e1:00.0",
        "Bind 10000:e1:00.0 mlx5_vfio_pci {}",
    );
    done(&["restore", "a1:00.0"], "0000:a1:00.0 is bound to vfio-pci again", "Restore 0000:a1:00.0 {}");
    done(&["restore", "82:00.0"], "nothing to do: there is no claim on 0000:82:00.0", "Restore 0000:82:00.0 {}");
    done(
        &["vfs", "41:00.0", "32"],
        "nothing to do: 0000:41:00.0 has 32 VFs already",
        "SetNumVfs 0000:41:00.0 32 {timeout-ms=uint32 290000}",
    );
    done(
        &["vfs", "3b:00.0", "64", "--drivers-autoprobe", "off"],
        "0000:3b:00.0 has 64 VFs now: 0000:3b:01.0 … 0000:3b:08.7",
        "SetNumVfs 0000:3b:00.0 64 {drivers-autoprobe=false, timeout-ms=uint32 290000}",
    );
    done(
        &["vfs", "enp59s0f1", "0"],
        "nothing to do: 0000:3b:00.1 has 0 VFs already",
        "SetNumVfs 0000:3b:00.1 0 {timeout-ms=uint32 290000}",
    );
    done(
        &["configure", "3b:01.2", "mac=52:54:00:6D:90:02", "trust=on", "max-rate=1000"],
        "0000:3b:01.2 is set",
        "Configure 0000:3b:01.2 {mac=\"52:54:00:6d:90:02\", max-rate=uint32 1000, trust=true}",
    );
    done(
        &["configure", "3b:01.2", "vlan=42"],
        "nothing to do: 0000:3b:01.2 is set so already",
        "Configure 0000:3b:01.2 {vlan=uint32 42}",
    );
    for (typed, id, now) in [
        ("1145", 1145, "NVIDIA L40S-4Q (1145)"),
        ("NVIDIA L40S-8Q", 1148, "NVIDIA L40S-8Q (1148)"),
        ("L40S-48C", 1155, "NVIDIA L40S-48C (1155)"),
    ] {
        let note = format!("0000:c1:00.4 has {now} now");
        done(&["vgpu-type", "c1:00.4", typed], &note, &format!("SetVgpuType 0000:c1:00.4 {id} {{}}"));
    }
    done(
        &["vgpu-type", "c1:00.4", "none"],
        "nothing to do: 0000:c1:00.4 has no vGPU type already",
        "SetVgpuType 0000:c1:00.4 0 {}",
    );
    let output = run(&fake, &["vgpu-type", "c1:00.4"]);
    let expected = "0000:c1:00.4  no vGPU type\n  1140  NVIDIA L40S-1B\n  1145  NVIDIA L40S-4Q\n  1148  NVIDIA L40S-8Q\n  1155  NVIDIA L40S-48C\n";
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), expected));
    let output = run(&fake, &["vgpu-type", "41:00.4", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["vgpu_type"]["id"], 1145);
    keys_of_object_are_documented(&json);
    // Requests know short addresses too, also without a key.
    let output = run(&fake, &["claim", "81:00", "address=41:00.9", "kind=vf,pf=3B:00.0"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let output = run(&fake, &["claim", "81:00", "address=C1:00.4,vgpu-type=1145", "kind=vf,pf=3B:00.0"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        fake.calls(),
        [
            "Acquire address=0000:81:00,name=dev0 address=0000:c1:00.4,name=dev1,vgpu-type=1145 kind=vf,name=dev2,pf=0000:3b:00.0 {}"
        ]
    );
    let output = run(&fake, &["release", "0000:41:00.4"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert_eq!(fake.calls(), [format!("Release {} {{}}", vm(1))]);
    let output = run(&fake, &["release", "81:00"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert_eq!(fake.calls(), [format!("Release {} {{}}", vm(20))]);
}

fn keys_of_object_are_documented(json: &Value) {
    let mut all = BTreeSet::new();
    keys(json, &mut all);
    are_documented(&all);
}

#[test]
fn refusals_say_what_to_do() {
    let fake = Fake::start_big();
    for (words, code, expected) in [
        (&["bind", "a2:00.0"][..], 1, "the host itself needs 0000:a2:00.0: carries / on nvme0n1p2"),
        (
            &["bind", "82:00"],
            1,
            "'82:00' is not one PCI function; it is function 0000:82:00.0 and function 0000:82:00.1\nto take all functions of a card: hostdevctl claim address=0000:82:00",
        ),
        (&["bind", "mtty"], 1, "'mtty' is not one PCI function; it is parent mtty"),
        (&["vfs", "41:00.0", "33"], 1, "0000:41:00.0 can have 32 virtual functions, not 33"),
        (
            &["vfs", "41:00.4", "2"],
            1,
            "0000:41:00.4 is itself a VF, of 0000:41:00.0\nto see them all: hostdevctl vfs 0000:41:00.0",
        ),
        (&["vfs", "a1:00.0"], 1, "0000:a1:00.0 can have no VFs: it is no PF of SR-IOV"),
        (&["vfs", "3b:00"], 1, "'3b:00' is not one PF; it is function 0000:3b:00.0 and function 0000:3b:00.1"),
        (
            &["configure", "3b:00.0", "vlan=1"],
            1,
            "0000:3b:00.0 is a PF; its VFs are set one by one\nhostdevctl vfs 0000:3b:00.0 lists them",
        ),
        (&["configure", "a1:00.0", "vlan=1"], 1, "0000:a1:00.0 is no VF: only those can be set"),
        (&["configure", "3b:01.0", "vlna=1"], 2, "unknown setting 'vlna': did you mean 'vlan'?"),
        (&["configure", "3b:01.0", "vlan=1", "vlan=2"], 2, "'vlan' is given twice"),
        (&["configure", "3b:01.0", "qos=8"], 2, "qos: '8' is not a number from 0 to 7"),
        (
            &["vgpu-type", "c1:00.4", "NVIDIA L40S-9Q"],
            1,
            "0000:c1:00.4 cannot have the vGPU type 'NVIDIA L40S-9Q'\ndid you mean 'NVIDIA L40S-4Q'?",
        ),
        (
            &["vgpu-type", "c1:00.4", "A16"],
            1,
            "0000:c1:00.4 cannot have the vGPU type 'A16'\nhostdevctl vgpu-type 0000:c1:00.4 lists those that it can have now",
        ),
        (
            &["show", "41:05.0"],
            1,
            "there is no device, parent or claim '41:05.0', and no VM of this name has a claim\nhostdevctl list and hostdevctl claims show what there is",
        ),
        (
            &["show", "0000:41:05.0"],
            1,
            "there is no device, parent or claim '0000:41:05.0', and no VM of this name has a claim\ndid you mean '0000:41:00.0'?",
        ),
        (
            &["types", "a1:00.0"],
            1,
            "a1:00.0 offers no types: it is neither an mdev parent nor a PF\nhostdevctl types lists those of all",
        ),
        (&["release", "82:00.0"], 1, "no claim holds 0000:82:00.0, so there is nothing to release"),
        (
            &["release", "3b:01.0"],
            1,
            &format!(
                "the claim that holds 0000:3b:01.0 (domain vm13) holds 2 devices\nto free them all: hostdevctl release {}",
                vm(13)
            ),
        ),
        (
            &["doctor", "mtty"],
            1,
            "'mtty' is not a PCI function; it is parent mtty\nthe doctor looks at PCI functions, and at the host: hostdevctl doctor",
        ),
    ] {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), ""), "{words:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), format!("hostdevctl: {expected}\n"), "{words:?}");
    }
}

#[test]
fn xml_of_functions() {
    let fake = Fake::start_big();
    let output = run(&fake, &["xml", "41:00.4", "--display", "--ramfb", "off", "--managed", "no", "--rom-bar", "off"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let options = "display=\"on\", managed=\"no\", ramfb=\"off\", rom-bar=\"off\"";
    assert_eq!(
        fake.calls(),
        [format!("HostdevXml 0000:41:00.4 {{{options}}} (without ALLOW_INTERACTIVE_AUTHORIZATION)")]
    );
    let words = ["xml", "3b:01.0", "--interface", "--mac", "52:54:00:6d:90:02", "--vlan", "42", "--driver", "vfio-pci"];
    let output = run(&fake, &words);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let options = "driver=\"vfio-pci\", interface=true, mac=\"52:54:00:6d:90:02\", vlan=uint32 42";
    assert_eq!(
        fake.calls(),
        [format!("HostdevXml 0000:3b:01.0 {{{options}}} (without ALLOW_INTERACTIVE_AUTHORIZATION)")]
    );
    for (name, words) in [
        (
            "big-xml-card",
            &["xml", "82:00", "--guest-address", "0000:05:00.0", "--rom-file", "/usr/share/vgabios.rom"][..],
        ),
        ("big-xml-network", &["xml", "enp59s0f1", "--network", "fabric"]),
        ("big-xml-claim", &["xml", "vm13"]),
    ] {
        let output = run(&fake, words);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        golden(&format!("{name}.txt"), stdout(&output));
    }
    let output = run(&fake, &["xml", "enp59s0f1", "--network", "fabric"]);
    assert_eq!(
        stderr(&output),
        "hostdevctl: there must be VFs when the network starts: hostdevctl vfs 0000:3b:00.1 COUNT\n"
    );
    let output = run(&fake, &["xml", "3b:00.0", "--network", "fabric"]);
    assert!(stderr(&output).contains("3 of its VFs are claimed here"), "{}", stderr(&output));

    let output = run(&fake, &["xml", "c1:00.0", "--network", "gpus"]);
    let expected = "hostdevctl: 0000:c1:00.0 (NVIDIA L40S) is no network card: a network cannot give VMs its VFs\n";
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), expected));

    // Of a domain's requests: an address needs no mdevd, a card does.
    let domain = vm(1);
    let request = |request| ["xml", "--domain", domain.as_str(), "--request", request];
    let output =
        hostdevctl("unix:path=/nonexistent", &request("name=gpu,address=41:00.4,vgpu-type=1145")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    golden("big-xml-domain.txt", stdout(&output));
    let output = hostdevctl("unix:path=/nonexistent", &request("address=82:00")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let output = run(&fake, &request("name=gpu,address=82:00,guest-address=0000:05:00.0"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    golden("big-xml-domain-card.txt", stdout(&output));

    for (words, expected) in [
        (
            &request("kind=vf,pf=3b:00.0")[..],
            "but the XML of a domain names one address\nhostdevctl explain kind=vf,pf=0000:3b:00.0 lists",
        ),
        (&["xml", "82:00", "--interface"], "--interface is for one VF, and this is a card of several functions"),
        (&["xml", "82:00", "--guest-address", "0000:05:00.1"], "that of a card ends in .0"),
        (&["xml", "82:00.0", "--nodedev"], "82:00.0 is a PCI function: nodedev-create makes mdevs only"),
        (&["xml", crate::fake::GPU, "--rom-bar", "off"], "is an mdev: --rom-bar goes with a PCI function"),
        (&["xml", "3b:01.0", "--mac", "52:54:00:6d:90:02"], "the following required arguments were not provided"),
        (&["xml", "vm13", "--managed", "no"], "vm13 is a claim: its elements are as its requests say"),
        (&["xml", "mtty", "--network", "x"], "mtty is no PF: --network makes a network of a PF's VFs"),
    ] {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn the_doctor_fails_where_the_host_or_what_was_asked_for_is_not_well() {
    let nothing = Fake::start(false);
    let (text, code) = terminal::run(80, hostdevctl(&nothing.bus.address, &["doctor"]).env("NO_COLOR", "1"));
    assert_eq!(code, Some(1));
    golden("doctor-nothing.80-columns.txt", &text);
    // What is to be typed stands in lines of its own, whole.
    assert!(
        text.contains("\n      modprobe vfio-pci\n      echo vfio-pci > /etc/modules-load.d/vfio-pci.conf\n"),
        "{text}"
    );
    let output = run(&nothing, &["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()[0]["verdict"], "needs-setup");

    let fake = Fake::start_big();
    for (device, code) in [("82:00.0", 0), ("82:00", 0), ("0000:00:1f.0", 1), ("a2:00.0", 1), (crate::fake::GPU, 1)] {
        let output = run(&fake, &["doctor", device]);
        assert_eq!(output.status.code(), Some(code), "{device}: {}", stdout(&output));
        assert_eq!(stdout(&output).matches("libvirt hook").count(), 1, "{}", stdout(&output));
    }
    let output = run(&fake, &["doctor", "--all"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).lines().count() > 200);
}

#[test]
fn help_of_verbs_for_functions() {
    for verb in ["list", "tree", "doctor", "vfs", "bind", "restore", "configure", "vgpu-type"] {
        let output = hostdevctl("unix:path=/nonexistent", &[verb, "--help"]).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{verb}");
        golden(&format!("help-{verb}.txt"), stdout(&output));
    }
}
