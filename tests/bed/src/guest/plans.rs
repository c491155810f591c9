//! What a program that measures in guests is given on the KVM host.

use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// Arguments of the command that boots guests on the KVM host, one after the other.
#[derive(Debug, clap::Args)]
pub struct Plans {
    /// Kernel of the guests.
    pub kernel: PathBuf,
    /// Their initramfs.
    pub initramfs: PathBuf,
    /// As JSON.
    plans: String,
}

impl Plans {
    /// What each guest is for.
    ///
    /// # Errors
    ///
    /// When it is not a list of these as JSON.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<Vec<T>> {
        serde_json::from_str(&self.plans)
    }
}
