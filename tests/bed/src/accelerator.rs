//! Decides where guests run: on this machine's own KVM, or on a KVM host emulated by QEMU.

use std::env;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::tools;

/// What runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's own KVM with hardware second-level page tables.
    Direct,
    /// KVM in a Debian kernel on QEMU's software CPU, which emulates SVM with nested paging.
    Nested,
}

impl Accelerator {
    /// `kvm` or `nested-tcg`, as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "kvm",
            Self::Nested => "nested-tcg",
        }
    }

    /// What `VMSRS_BED` (`nested` or `direct`) asks for; without it, direct KVM where this machine has it.
    ///
    /// # Errors
    ///
    /// [`Error::NoDirect`] when direct KVM is asked for but unavailable, [`Error::BadMode`] for any other value.
    pub fn choose() -> Result<Self> {
        let direct = match tools::is_root() {
            true => direct_kvm(Path::new("/sys"), Path::new("/dev")),
            false => Err("only root can create taps".to_owned()),
        };
        match (env::var("VMSRS_BED").unwrap_or_default().as_str(), direct) {
            ("", Ok(())) | ("direct", Ok(())) => Ok(Self::Direct),
            ("", Err(_)) | ("nested", _) => Ok(Self::Nested),
            ("direct", Err(reason)) => Err(Error::NoDirect { reason }),
            (value, _) => Err(Error::BadMode {
                value: value.to_owned(),
            }),
        }
    }
}

/// Checks that the machine's KVM has second-level page tables and that taps can be created; the error is the reason.
pub fn direct_kvm(sys: &Path, dev: &Path) -> Result<(), String> {
    let parameters = [
        "module/kvm_intel/parameters/ept",
        "module/kvm_amd/parameters/npt",
    ];
    let second_level = parameters.iter().any(|parameter| {
        let value = fs::read_to_string(sys.join(parameter)).unwrap_or_default();
        matches!(value.trim(), "Y" | "1")
    });
    if !second_level {
        return Err("neither kvm_intel with ept nor kvm_amd with npt is loaded".to_owned());
    }
    for device in ["kvm", "net/tun"] {
        let path = dev.join(device);
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(&path) {
            return Err(format!("cannot open {}: {error}", path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_without_second_level_page_tables_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let reason = direct_kvm(folder.path(), folder.path()).unwrap_err();
        assert!(reason.contains("npt"), "{reason}");
    }

    #[test]
    fn kvm_is_used_when_its_devices_open() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("module/kvm_amd/parameters")).unwrap();
        fs::create_dir_all(root.join("net")).unwrap();
        fs::write(root.join("module/kvm_amd/parameters/npt"), "Y\n").unwrap();
        fs::write(root.join("kvm"), "").unwrap();
        assert!(direct_kvm(root, root).unwrap_err().contains("net/tun"));
        fs::write(root.join("net/tun"), "").unwrap();
        assert_eq!(direct_kvm(root, root), Ok(()));
    }
}
