//! A bus of one's own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A private bus, gone with the value.
pub struct Bus {
    child: Child,
    /// Where it listens.
    pub address: String,
    directory: TempDir,
}

impl Bus {
    /// Starts one on which nobody is. When someone calls org.mdevd1 the bus runs `activation` to start it, if there is one.
    pub fn start(activation: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("bus.conf");
        let services = directory.path().join("services");
        fs::create_dir(&services).unwrap();
        if let Some(command) = activation {
            fs::write(
                services.join("org.mdevd1.service"),
                format!("[D-BUS Service]\nName=org.mdevd1\nExec={command}\n"),
            )
            .unwrap();
        }
        fs::write(
            &config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={0}/bus</listen><servicedir>{0}/services</servicedir>\
                 <policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
                directory.path().display()
            ),
        )
        .unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // as root it complains of limits that do not matter here
            .spawn()
            .expect("dbus-daemon is needed for these tests: install the package dbus");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "dbus-daemon did not say where it listens");
        Self { child, address: address.trim().to_owned(), directory }
    }

    /// A folder that lives as long as the bus.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
