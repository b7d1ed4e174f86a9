//! Reading the system's long lists line by line, so that what is not kept costs no memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::error::{EffectError, Problem};
use crate::read;

/// The longest list that is read. `pci.ids` has 1.5 MiB, `modules.alias` as much.
const LIMIT: u64 = 8 * 1024 * 1024;

/// Gives each line of a file, without its end; what is not UTF-8 comes with replacement characters. False when there is no such file.
pub(super) fn each_line(path: &Path, mut on_line: impl FnMut(&str)) -> Result<bool, Problem> {
    let fail = |error: std::io::Error| Problem::from(EffectError::io("read", path, &error));
    let Some(found) = read::unless_gone(std::fs::metadata(path).map_err(|e| EffectError::io("look at", path, &e)))?
    else {
        return Ok(false);
    };
    if !found.is_file() {
        return Err(Problem::new(path, "not a plain file; it is not read"));
    }
    if found.len() > LIMIT {
        return Err(Problem::new(path, format!("longer than {} MiB; it is not read", LIMIT / 1024 / 1024)));
    }
    let mut file = BufReader::new(File::open(path).map_err(fail)?.take(LIMIT));
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line).map_err(fail)? > 0 {
        on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(true)
}
