//! A terminal of a given width, for what is printed differently on one.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// What a program prints on a terminal of so many columns, and its exit status.
pub fn run(columns: u16, command: &mut Command) -> (String, Option<i32>) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = OpenOptions::new().read(true).write(true).open(name).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut modes = tcgetattr(&slave).unwrap();
    modes.output_modes.remove(OutputModes::OPOST); // no carriage returns
    tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();

    let mut child = command.stdout(Stdio::from(slave.try_clone().unwrap())).stderr(Stdio::from(slave)).spawn().unwrap();
    // The command has its own copies of the slave; as long as those are open there is no end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut master = std::fs::File::from(master);
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // The other end closed is EIO here, not an end of file.
    while let Ok(n) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
        if n == 0 {
            break;
        }
    }
    (String::from_utf8(text).unwrap(), child.wait().unwrap().code())
}
