//! Disks, for tests in which the host lives on one: where it is, and nothing of what could be read from it.

use super::host::FakeHost;
use super::tree::{Attr, Tree};

impl FakeHost {
    /// The driver of a function has made a disk, `nvme0n1` with the number `259:0`. It stays when the function goes.
    pub fn disk(&self, address: &str, name: &str, number: &str) {
        let home = format!("{}/nvme/nvme0/{name}", self.function_path(address));
        self.change(|world| {
            world.tree.attr(&format!("{home}/dev"), 0o444, false, Attr::Text(format!("{number}\n")));
            for (folder, file) in [("sys/class/block", name), ("sys/dev/block", number)] {
                world.tree.link(&format!("{folder}/{file}"), &Tree::relative(folder, &home), false);
            }
        });
    }
}
