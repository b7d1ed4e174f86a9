//! Processes in procfs: which one a pid is, and whether it is still that one.

use mdevd_core::names::printable;

use crate::error::EffectError;
use crate::read;
use crate::roots::Roots;

/// Whether a process is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alive {
    /// It is, or it is not.
    Known(bool),
    /// It could not be found out, and why.
    Unknown(String),
}

impl Alive {
    /// True only when it is certain that the process has gone.
    pub fn gone(&self) -> bool {
        *self == Self::Known(false)
    }
}

/// When a process started, in clock ticks since boot: what makes a pid, which is used again, into one process. `None` when there is no
/// such process or it cannot be read.
pub fn start_time(roots: &Roots, pid: u32) -> Option<u64> {
    stat(roots, pid).ok().flatten().map(|stat| stat.start_time)
}

/// Whether the process of this pid that started then is there; without a start time, whether any process of this pid is. One that has
/// exited and only waits to be collected is gone.
pub fn alive(roots: &Roots, pid: u32, start_time: Option<u64>) -> Alive {
    match stat(roots, pid) {
        Ok(None) => Alive::Known(false),
        Ok(Some(stat)) => Alive::Known(!stat.dead && start_time.is_none_or(|expected| expected == stat.start_time)),
        Err(error) => Alive::Unknown(error.to_string()),
    }
}

/// Whether a process runs on though its first thread has ended.
pub(crate) fn outlived(roots: &Roots, pid: u32) -> Result<bool, EffectError> {
    Ok(stat(roots, pid)?.is_some_and(|stat| stat.outlived))
}

/// A process's command name, fit for a message; `?` when it cannot be read.
pub fn command(roots: &Roots, pid: u32) -> String {
    match read::attribute(&roots.process_dir(pid).join("comm")) {
        Ok(name) => printable(&name),
        Err(_) => "?".into(),
    }
}

struct Stat {
    start_time: u64,
    dead: bool,
    outlived: bool,
}

fn stat(roots: &Roots, pid: u32) -> Result<Option<Stat>, EffectError> {
    let path = roots.process_dir(pid).join("stat");
    let Some(text) = read::optional_attribute(&path)? else { return Ok(None) };
    match parse_stat(&text) {
        Some(stat) => Ok(Some(stat)),
        None => Err(EffectError::new("make sense of", path, rustix::io::Errno::INVAL)),
    }
}

/// `PID (COMM) STATE …`: COMM may hold spaces and parentheses, so that the fields begin after the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // Counted as in proc(5): the state is field 3, the number of threads 20, the start time 22.
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    // A first thread that has ended is a zombie too, while other threads run on with the process's open files.
    let outlived = state == "Z" && threads > 1;
    let dead = matches!(state, "X" | "x" | "Z") && !outlived;
    Some(Stat { start_time, dead, outlived })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(dir: &std::path::Path) -> Roots {
        Roots { proc: dir.to_owned(), ..Roots::default() }
    }

    fn process(dir: &std::path::Path, pid: u32, stat: &str) {
        std::fs::create_dir_all(dir.join(pid.to_string())).unwrap();
        std::fs::write(dir.join(pid.to_string()).join("stat"), stat).unwrap();
    }

    fn line(comm: &str, state: char, threads: u32, start: u64) -> String {
        format!(
            "7 ({comm}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 {start} 2293760 210 18446744073709551615\n"
        )
    }

    #[test]
    fn a_command_name_cannot_forge_the_fields() {
        let dir = tempfile::tempdir().unwrap();
        for comm in ["libvirtd", "a b", "x) Z 1 (", ") ) )", "a\nb"] {
            process(dir.path(), 7, &line(comm, 'S', 3, 123456));
            assert_eq!(start_time(&roots(dir.path()), 7), Some(123456), "{comm}");
            assert_eq!(alive(&roots(dir.path()), 7, Some(123456)), Alive::Known(true));
        }
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_the_one() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 7, &line("x", 'S', 1, 5));
        assert_eq!(alive(&roots(dir.path()), 7, Some(4)), Alive::Known(false));
        assert_eq!(alive(&roots(dir.path()), 7, None), Alive::Known(true));
        assert_eq!(alive(&roots(dir.path()), 8, None), Alive::Known(false));
    }

    #[test]
    fn a_zombie_is_gone_unless_its_threads_run_on() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 7, &line("x", 'Z', 1, 5));
        assert!(alive(&roots(dir.path()), 7, Some(5)).gone());
        process(dir.path(), 7, &line("x", 'Z', 4, 5));
        assert!(!alive(&roots(dir.path()), 7, Some(5)).gone());
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        for broken in ["", "7 (x", "7 (x) S", "7 (x) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 late"] {
            process(dir.path(), 7, broken);
            assert!(matches!(alive(&roots(dir.path()), 7, Some(5)), Alive::Unknown(_)), "{broken}");
            assert_eq!(start_time(&roots(dir.path()), 7), None);
        }
    }
}
