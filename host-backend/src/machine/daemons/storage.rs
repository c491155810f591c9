//! Images of disks: what they are, their locks, and how they are served.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileTypeExt;

use serde_json::json;

use super::error::DaemonError;
use super::options::DiskOption;
use super::program::STORAGE;

/// Looks at an image, and locks it for this VM; also returns QEMU's name for what it is.
pub(super) fn check_image(disk: &DiskOption) -> Result<(File, &'static str), DaemonError> {
    let option = STORAGE.option;
    let failed = |source| DaemonError::Open {
        option,
        path: disk.file.clone(),
        source,
    };
    let kind = fs::metadata(&disk.file).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DaemonError::Kind {
            option,
            path: disk.file.clone(),
            what: "a regular file or a block device",
        });
    }
    let image = File::options()
        .read(true)
        .write(!disk.is_readonly)
        .open(&disk.file)
        .map_err(failed)?;
    // The daemon shares the image with every other that serves it.
    let locked = match disk.is_readonly {
        true => image.try_lock_shared(),
        false => image.try_lock(),
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(DaemonError::Busy(format!("{option} {}", disk.text)));
        }
        // Not every file system has locks.
        Err(TryLockError::Error(error)) => log::info!("{option}: no lock: {error}"),
    }
    let driver = match kind.is_file() {
        true => "file",
        false => "host_device",
    };
    Ok((image, driver))
}

/// The arguments of `qemu-storage-daemon`. The format is never guessed: the guest writes what would be looked at.
pub(super) fn storage_arguments(disk: &DiskOption, driver: &str, socket: i32) -> Vec<OsString> {
    let format = if disk.is_qcow2 { "qcow2" } else { "raw" };
    let image = json!({
        "driver": format,
        "node-name": "disk",
        "read-only": disk.is_readonly,
        "discard": "unmap",
        "file": {
            "driver": driver,
            "filename": disk.file,
            "discard": "unmap",
        },
    });
    let writable = if disk.is_readonly { "off" } else { "on" };
    let export = format!(
        "type=vhost-user-blk,id=disk,node-name=disk,writable={writable},addr.type=fd,addr.str={socket}"
    );
    vec![
        "--blockdev".into(),
        image.to_string().into(),
        "--export".into(),
        export.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str, driver: &str) -> Vec<String> {
        let disk = text.parse().unwrap();
        let words = storage_arguments(&disk, driver, 7).into_iter();
        words.map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn the_format_of_an_image_is_never_guessed() {
        let words = arguments("/a b\".img,readonly", "file");
        let image: serde_json::Value = serde_json::from_str(&words[1]).unwrap();
        assert_eq!(image["driver"], "raw");
        assert_eq!(image["read-only"], true);
        assert_eq!(image["file"]["driver"], "file");
        assert_eq!(image["file"]["filename"], "/a b\".img");
        assert!(words[3].contains("writable=off"), "{}", words[3]);
        assert!(
            words[3].ends_with(",addr.type=fd,addr.str=7"),
            "{}",
            words[3]
        );
        let words = arguments("/dev/x,format=qcow2", "host_device");
        let image: serde_json::Value = serde_json::from_str(&words[1]).unwrap();
        assert_eq!(image["driver"], "qcow2");
        assert_eq!(image["file"]["driver"], "host_device");
        assert!(words[3].contains("writable=on"), "{}", words[3]);
    }
}
