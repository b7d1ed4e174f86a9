//! The vendor's vGPU types of a virtual function: NVIDIA's folder `nvidia`, which its driver gives a function on kernels since 6.8, where
//! its vGPUs are no mediated devices.

use std::path::Path;

use mdevd_core::function::{VgpuType, VgpuTypes};
use mdevd_core::names::{VgpuTypeId, printable};
use rustix::io::Errno;

use crate::error::EffectError;
use crate::read;
use crate::scan::noted;

/// The types of the function with this folder; `None` when it takes none. What only describes them goes to `problems`; the type that the
/// function has is an error where it cannot be told.
pub(super) fn read_types(function: &Path, problems: &mut Vec<String>) -> Result<Option<VgpuTypes>, EffectError> {
    let dir = function.join("nvidia");
    let at = dir.join("current_vgpu_type");
    let current = match read::optional_attribute(&at)?.as_deref().map(str::trim) {
        None => return Ok(None),
        Some("0") => None,
        Some(text) => {
            Some(text.parse::<VgpuTypeId>().map_err(|_| EffectError::new("make sense of", &at, Errno::INVAL))?)
        }
    };
    let list = read::unless_gone(read::text(&dir.join("creatable_vgpu_types"), read::LIST_LIMIT));
    let (creatable, left_out) = creatable_types(&noted(list, problems).flatten().unwrap_or_default());
    problems.extend(left_out);
    let gpu_instance = noted(read::optional_attribute(&dir.join("gpu_instance_id")), problems).flatten();
    let gpu_instance = gpu_instance.and_then(|text| noted(instance(&text), problems).flatten());
    Ok(Some(VgpuTypes { current, creatable, gpu_instance }))
}

/// The types in a `creatable_vgpu_types`: a line for the header, then one for each type, `1145  : NVIDIA L40S-1B`. Some drivers leave the
/// header out, and the list is empty where nothing can be made. Lines that are neither are left out and said in one sentence.
pub fn creatable_types(text: &str) -> (Vec<VgpuType>, Option<String>) {
    let mut types: Vec<VgpuType> = Vec::new();
    let mut odd = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split_once(':').map(|(id, name)| (id.trim(), name.trim())) {
            Some(("ID", _)) => {}
            Some((id, name)) if !name.is_empty() && !name.contains(char::is_control) => {
                match id.parse::<VgpuTypeId>() {
                    Ok(id) if types.iter().all(|known| known.id != id) => {
                        types.push(VgpuType { id, name: name.to_owned() })
                    }
                    _ => odd.push(line),
                }
            }
            _ => odd.push(line),
        }
    }
    let said = odd.first().map(|first| {
        let others = odd.len() - 1;
        let others = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        format!(
            "creatable_vgpu_types: '{}'{others} cannot be read as a vGPU type and its number; left out",
            printable(first)
        )
    });
    (types, said)
}

/// The number of the MIG instance behind a function; that of none is the highest there is.
fn instance(text: &str) -> Result<Option<u32>, String> {
    match text.trim() {
        "" | "-1" => Ok(None),
        text => match text.parse() {
            Ok(u32::MAX) => Ok(None),
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(format!("its gpu_instance_id is '{}' and not a number", printable(text))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> (Vec<String>, Option<String>) {
        let (types, problem) = creatable_types(text);
        (types.iter().map(|found| format!("{}={}", found.id, found.name)).collect(), problem)
    }

    #[test]
    fn a_list_is_read_as_the_driver_writes_it() {
        let text = "ID    : vGPU Name\n1145  : NVIDIA L40S-1B\n1146  : NVIDIA L40S-2B\n1414 : NVIDIA H200X-1-18C\n";
        let types =
            ["1145=NVIDIA L40S-1B", "1146=NVIDIA L40S-2B", "1414=NVIDIA H200X-1-18C"].map(String::from).to_vec();
        assert_eq!(shown(text), (types.clone(), None));
        let without_header = text.split_once('\n').unwrap().1;
        assert_eq!(shown(without_header.trim_end()), (types, None));
    }

    #[test]
    fn a_list_may_be_empty() {
        for text in ["", "\n", "ID    : vGPU Name\n", "ID    : vGPU Name"] {
            assert_eq!(shown(text), (vec![], None), "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_no_type_is_said_and_costs_the_others_nothing() {
        for line in [
            "0 : NVIDIA None",
            "-1 : x",
            "+7 : x",
            "11x : x",
            "1145",
            "1145 :",
            ": x",
            "4294967296 : x",
            "7 : \u{1b}[2J",
            "1 2 : x",
        ] {
            let (types, problem) = shown(&format!("ID : vGPU Name\n{line}\n8 : good\n"));
            assert_eq!(types, ["8=good"], "{line}");
            let problem = problem.unwrap();
            assert!(problem.ends_with("; left out"), "{problem}");
            assert!(!problem.contains(char::is_control), "{problem:?}");
        }
        let (types, problem) = shown("8 : first\n8 : again\nx\n");
        assert_eq!(types, ["8=first"]);
        let said =
            "creatable_vgpu_types: '8 : again' (and 1 more) cannot be read as a vGPU type and its number; left out";
        assert_eq!(problem.unwrap(), said);
    }

    #[test]
    fn an_instance_is_a_number_or_none() {
        for (text, expected) in [("3", Some(3)), ("0", Some(0)), ("", None), ("-1", None), ("4294967295", None)] {
            assert_eq!(instance(text), Ok(expected), "{text}");
        }
        assert!(instance("x").unwrap_err().contains("'x'"));
    }

    proptest! {
        #[test]
        fn every_list_survives_text(list in prop::collection::btree_map(1u32.., "[!-~]([ -~]{0,30}[!-~])?", 0..20), pad in 0usize..6) {
            let lines: String = list.iter().map(|(id, name)| format!("{id}{} : {name}\n", " ".repeat(pad))).collect();
            let (types, problem) = creatable_types(&format!("ID    : vGPU Name\n{lines}"));
            let read: std::collections::BTreeMap<u32, String> =
                types.into_iter().map(|found| (found.id.0.get(), found.name)).collect();
            prop_assert_eq!((read, problem), (list, None));
        }

        #[test]
        fn no_text_panics_and_no_line_is_lost(text in "([0-9]{0,4} ?:? ?\\PC{0,9}\n?){0,20}|\\PC*") {
            let (types, problem) = creatable_types(&text);
            let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
            prop_assert!(types.len() <= lines);
            prop_assert!(problem.is_some() || lines - types.len() <= text.matches("ID").count());
        }
    }
}
