//! What is a name and what is not, and the sentences that say why.

use super::*;
use proptest::prelude::*;

#[test]
fn pci_addresses_that_are_right() {
    for (text, shown) in
        [("0000:41:00.4", "0000:41:00.4"), ("10000:E1:1f.7", "10000:e1:1f.7"), ("ffffffff:ff:1f.7", "ffffffff:ff:1f.7")]
    {
        assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()), Ok(shown.into()));
    }
}

#[test]
fn pci_addresses_that_are_wrong_say_why() {
    let why = |text: &str| text.parse::<PciAddress>().unwrap_err().why;
    assert_eq!(why("41:00.4"), "no ':' between bus and device");
    assert_eq!(why("0000:41:20.0"), "the device is above 1f");
    assert_eq!(why("0000:41:00.8"), "the function is above 7");
    assert_eq!(why("000:41:00.0"), "the domain '000' must have 4 to 8 hexadecimal digits");
    assert_eq!(why("0000:+1:00.0"), "the bus '+1' must have 2 hexadecimal digits");
    assert_eq!(why("0000:41:00"), "no '.' before the function");
}

#[test]
fn names_cannot_leave_their_folder_or_hide_in_a_terminal() {
    for bad in ["", ".", "..", "a/b", "a\nb", "a\0b", "\u{1b}[2J"] {
        assert!(bad.parse::<ParentName>().is_err(), "{bad:?}");
        assert!(bad.parse::<MdevTypeId>().is_err(), "{bad:?}");
    }
    let error = "a\n\u{1b}[2J".parse::<ParentName>().unwrap_err().to_string();
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

#[test]
fn request_names_say_what_is_wrong_with_them() {
    let longest = "x".repeat(32);
    assert_eq!(longest.parse::<RequestName>().map(String::from), Ok(longest));
    let why = |text: &str| text.parse::<RequestName>().unwrap_err().why;
    assert_eq!(why(""), "it must have 1 to 32 characters");
    assert_eq!(why(&"x".repeat(33)), "it must have 1 to 32 characters");
    // 17 characters, but 34 bytes: the length is not what is wrong.
    assert_eq!(why(&"ä".repeat(17)), "only letters, digits, '_' and '-' are allowed");
    assert_eq!(why("a.1"), "only letters, digits, '_' and '-' are allowed");
}

#[test]
fn uuids_are_hyphenated_and_lower_cased() {
    let upper = "AAAAAAAA-2222-3333-4444-555555555555";
    assert_eq!(upper.parse::<MdevUuid>().map(|u| u.to_string()), Ok(upper.to_lowercase()));
    for bad in ["aaaaaaaa222233334444555555555555", "{aaaaaaaa-2222-3333-4444-55555555555}", "", "urn:uuid:x"] {
        assert!(bad.parse::<MdevUuid>().is_err(), "{bad}");
    }
}

#[test]
fn a_derived_uuid_is_what_uuidgen_prints() {
    let domain = parse_uuid("0f154289-728c-42df-9e56-9b6c1be66e73").unwrap();
    // uuidgen --sha1 -n 0f154289-728c-42df-9e56-9b6c1be66e73 -N gpu0
    assert_eq!(MdevUuid::derived(domain, "gpu0").to_string(), "95dfa89f-59f0-54a0-83f4-c665e1e9868b");
}

#[test]
fn cards_are_addresses_without_a_function() {
    for (text, shown) in [
        ("41:00", "0000:41:00"),
        ("0000:41:00", "0000:41:00"),
        ("0000:E1:1F", "0000:e1:1f"),
        ("10000:e1:00", "10000:e1:00"),
    ] {
        assert_eq!(text.parse::<PciCard>().map(|card| card.to_string()), Ok(shown.into()), "{text}");
    }
    let message = |text: &str| text.parse::<PciCard>().unwrap_err().to_string();
    for (text, why) in [
        ("0000:41:00.0", "it has a function"),
        ("41:00.0", "it has a function"),
        ("0000:41:00.", "it has a function"),
        ("", "no ':' after the domain"),
        ("41", "no ':' after the domain"),
        ("0000:41", "the bus '0000' must have 2 hexadecimal digits"),
        ("41:20", "the device is above 1f"),
        ("41:0", "the device '0' must have 2 hexadecimal digits"),
        ("000:41:00", "the domain '000' must have 4 to 8 hexadecimal digits"),
        ("0000:41:00:00", "the device '00:00' must have 2 hexadecimal digits"),
        ("41:*", "the device '*' must have 2 hexadecimal digits"),
    ] {
        assert_eq!(message(text), format!("'{text}' is not a PCI card (like 0000:41:00): {why}"));
    }
    let card: PciCard = "41:00".parse().unwrap();
    assert_eq!(card.function(7).to_string(), "0000:41:00.7");
    assert_eq!(card.function(7).card(), card);
}

#[test]
fn mac_addresses() {
    let parse = |text: &str| text.parse::<MacAddress>();
    assert_eq!(parse("52:54:00:6D:90:02").map(|mac| mac.to_string()), Ok("52:54:00:6d:90:02".into()));
    assert_eq!(parse("00:00:00:00:00:00"), Ok(MacAddress::ZERO));
    for (text, many) in [("01:00:5e:00:00:01", true), ("ff:ff:ff:ff:ff:ff", true), ("02:00:00:00:00:01", false)] {
        assert_eq!(parse(text).map(MacAddress::is_multicast), Ok(many), "{text}");
    }
    for text in [
        "",
        "52:54:00:6d:90",
        "52:54:00:6d:90:02:03",
        "52:54:00:6d:90:02:",
        "52-54-00-6d-90-02",
        "5254006d9002",
        "52:54:00:6d:90:2",
        "52:54:00:6d:90:0g",
        "52:54:00:6d:90:+2",
        " 52:54:00:6d:90:02",
        "52:54:00:6d:90:٠٢",
    ] {
        let message = format!("'{text}' is not a MAC address: it must be like 52:54:00:6d:90:02");
        assert_eq!(parse(text).map_err(|e| e.to_string()), Err(message));
    }
}

#[test]
fn vgpu_types_are_numbers_from_one_on() {
    for (text, shown) in [("1", "1"), ("1145", "1145"), ("0007", "7"), ("4294967295", "4294967295")] {
        assert_eq!(text.parse::<VgpuTypeId>().map(|id| id.to_string()), Ok(shown.into()));
    }
    for text in ["", "0", "000", "-1", "+5", "1145 ", "0x5", "4294967296", "nvidia-63", "٣"] {
        let message = format!("'{text}' is not the number of a vGPU type: it must be a whole number from 1 on");
        assert_eq!(text.parse::<VgpuTypeId>().map_err(|e| e.to_string()), Err(message));
    }
}

proptest! {
    #[test]
    fn every_address_survives_text(domain: u32, bus: u8, device in 0u8..=0x1f, function in 0u8..=7) {
        let address = PciAddress { domain, bus, device, function };
        prop_assert_eq!(address.to_string().parse(), Ok(address));
    }

    #[test]
    fn every_card_mac_and_vgpu_type_survives_text(domain: u32, bus: u8, device in 0u8..=0x1f, bytes: [u8; 6], id in 1u32..) {
        let card = PciCard { domain, bus, device };
        prop_assert_eq!(card.to_string().parse(), Ok(card));
        // A card is no function, and a function no card.
        prop_assert!(card.to_string().parse::<PciAddress>().is_err());
        prop_assert!(card.function(0).to_string().parse::<PciCard>().is_err());
        prop_assert_eq!(MacAddress(bytes).to_string().parse(), Ok(MacAddress(bytes)));
        prop_assert_eq!(id.to_string().parse::<VgpuTypeId>().map(|id| id.0.get()), Ok(id));
    }

    #[test]
    fn no_text_panics_and_errors_are_one_printable_line(text in "(?s).{0,20}|[0-9a-f:.]{0,20}") {
        let errors = [
            text.parse::<PciAddress>().err(),
            text.parse::<PciCard>().err(),
            text.parse::<MacAddress>().err(),
            text.parse::<VgpuTypeId>().err(),
            text.parse::<DriverName>().err(),
            text.parse::<RequestName>().err(),
            parse_uuid(&text).err(),
        ];
        for error in errors.into_iter().flatten() {
            prop_assert!(!error.to_string().chars().any(char::is_control), "{:?}", error);
        }
    }
}
