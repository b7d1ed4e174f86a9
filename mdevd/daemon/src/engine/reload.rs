//! Reading the configuration again, by `Reload` and by SIGHUP.

use std::path::Path;
use std::rc::Rc;

use super::Engine;
use crate::config;
use crate::error::{Error, Result};

/// Where the vendor's drop-ins are.
pub const USR_LIB: &str = "/usr/lib";

impl Engine {
    /// Reads the configuration again. One with an error changes nothing and is listed as a problem until it is mended.
    ///
    /// # Errors
    /// `InvalidArgument` with file, line and key.
    pub async fn reload(self: &Rc<Self>) -> Result<()> {
        let outcome = config::load(&self.roots.etc, Path::new(USR_LIB)).map_err(Error::invalid);
        {
            let mut state = self.state.borrow_mut();
            match &outcome {
                Ok(config) => {
                    state.notes.remove("configuration");
                    tracing::info!("configuration read again");
                    (self.set_log_level)(config.log_level);
                    state.config = config.clone();
                }
                Err(error) => {
                    tracing::error!("the configuration stays as it was: {error}");
                    state.notes.insert("configuration".into(), format!("it stays as it was: {error}"));
                }
            }
        }
        self.tell_hook();
        self.publish().await;
        outcome.map(|_| ())
    }

    /// Leaves the list of managed functions where libvirt's hook finds it without asking anybody.
    pub fn tell_hook(&self) {
        let mut state = self.state.borrow_mut();
        let lines: String = state.config.manage.iter().map(|selector| format!("{selector}\n")).collect();
        let written = mdevd_host::files::write_atomically(&self.roots.manage_file(), lines.as_bytes());
        match written {
            Ok(()) => {
                state.notes.remove("manage");
            }
            Err(error) => {
                tracing::error!("{error}");
                state
                    .notes
                    .insert("manage".into(), format!("the hook does not learn which functions are managed: {error}"));
            }
        }
    }
}
