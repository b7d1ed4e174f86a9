//! devlink, as far as we need it: whether a card's switch works as ever or as a switch of its own.

use mdevd_core::names::PciAddress;
use rustix::io::Errno;
use rustix::net::netlink;

use super::message::{attributes, half, text_attribute};
use crate::error::EffectError;

/// The part of generic netlink that knows the others' numbers, its question, and the attributes of question and answer.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

/// devlink's question, and the attributes of question and answer.
const ESWITCH_GET: u8 = 29;
const BUS_NAME: u16 = 1;
const DEVICE_NAME: u16 = 2;
const ESWITCH_MODE: u16 = 25;

/// Command, version and two bytes without a meaning: what a generic message begins with.
const GENERIC_HEADER: usize = 4;

/// How the switch of a physical function works, `legacy` or `switchdev`; `None` where the driver or the kernel does not say. Blocks.
pub fn eswitch_mode(address: PciAddress) -> Result<Option<&'static str>, EffectError> {
    match ask(address) {
        Ok(mode) => Ok(mode),
        // No devlink in the kernel, none in the driver, or no switch.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => Ok(None),
        Err(errno) => Err(EffectError::new("read the switch mode of", address.to_string(), errno)),
    }
}

fn ask(address: PciAddress) -> Result<Option<&'static str>, Errno> {
    let find = [generic(CONTROL_GET_FAMILY), text_attribute(CONTROL_FAMILY_NAME, "devlink")].concat();
    let answer = super::ask(Some(netlink::GENERIC), CONTROL, &find)?;
    let family = attribute_half(&answer, CONTROL_FAMILY_ID).ok_or(Errno::NOENT)?;
    let get =
        [generic(ESWITCH_GET), text_attribute(BUS_NAME, "pci"), text_attribute(DEVICE_NAME, &address.to_string())]
            .concat();
    let answer = super::ask(Some(netlink::GENERIC), family, &get)?;
    Ok(attribute_half(&answer, ESWITCH_MODE).and_then(mode))
}

fn generic(command: u8) -> Vec<u8> {
    vec![command, 1, 0, 0]
}

fn attribute_half(answer: &[u8], kind: u16) -> Option<u16> {
    let payload =
        attributes(answer.get(GENERIC_HEADER..)?).find_map(|(found, payload)| (found == kind).then_some(payload))?;
    half(payload, 0)
}

fn mode(number: u16) -> Option<&'static str> {
    match number {
        0 => Some("legacy"),
        1 => Some("switchdev"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::attribute;
    use proptest::prelude::*;

    #[test]
    fn a_mode_is_read_from_the_answer() {
        let answer = |mode: u16| {
            let bus = text_attribute(BUS_NAME, "pci");
            [generic(ESWITCH_GET), bus, attribute(ESWITCH_MODE, &mode.to_ne_bytes())].concat()
        };
        for (number, wanted) in [(0, Some("legacy")), (1, Some("switchdev")), (7, None)] {
            assert_eq!(attribute_half(&answer(number), ESWITCH_MODE).and_then(mode), wanted);
        }
        assert_eq!(attribute_half(&generic(ESWITCH_GET), ESWITCH_MODE), None);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_mode() {
        // The kernel itself, whether it has devlink or not. Some versions let only root ask.
        match eswitch_mode("fffe:ff:1f.7".parse().unwrap()) {
            Ok(mode) => assert_eq!(mode, None),
            Err(error) => assert_eq!(error.errno_name(), "EPERM", "{error}"),
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0..30_u16) {
            let _ = attribute_half(&bytes, kind).and_then(mode);
        }
    }
}
