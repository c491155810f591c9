//! A folder that the host and its guest share: it is there after the guest's panic, and the end of its daemon is an I/O error.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::disks::{ServedGuest, signal};
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// Its name.
pub const NAME: &str = "shared_folder_outlives_a_panic_and_its_daemon_s_end_is_an_io_error";

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: NAME,
    machine: Machine::Usual,
    steps: &[],
    host,
};

/// The init of a guest with a shared folder, which panics in its first boot.
pub const INIT: &str = r#"
# What the kernel says would come into the middle of what this says on the same console.
echo 1 >/proc/sys/kernel/printk
mkdir /mnt
mount -t virtiofs data /mnt
if [ -e /mnt/from-guest ]; then
	echo "share: $(cat /mnt/from-host)"
	echo "share: in use"
	while echo again >/mnt/again; do :; done 2>/dev/null
	cat /mnt/from-host || echo "share: cat has failed"
	ls /mnt/folder || echo "share: ls has failed"
	echo "share: nothing hangs"
else
	{ cat /mnt/from-host && echo "a word of the guest"; } >/mnt/from-guest
	sync
	echo c >/proc/sysrq-trigger
fi
"#;

/// `virtiofsd` on a KVM host whose root is an initramfs, which namespaces cannot leave.
const IN_INITRAMFS: &str = r#"#!/bin/sh
for word; do
	shift
	[ "$word" = --sandbox=namespace ] && word=--sandbox=chroot
	set -- "$@" "$word"
done
exec virtiofsd-itself "$@"
"#;

fn host(_: &mut Guest) -> Result<()> {
    let program = PathBuf::from("virtiofsd");
    fs::write(&program, IN_INITRAMFS)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let folder = std::env::temp_dir().join(format!("e2e-share-{}", std::process::id()));
    fs::create_dir_all(folder.join("folder"))?;
    fs::write(folder.join("from-host"), "a word of the host\n")?;
    let option = format!("data={}", folder.display());
    let mut guest = ServedGuest::boot("share-guest.img", "--share", &option)?;
    guest.wait("share: in use")?;
    let word = fs::read_to_string(folder.join("from-guest"))?;
    ensure!(
        word == "a word of the host\na word of the guest\n",
        "not what the first boot has read and written: {word}"
    );
    let said = guest.said();
    ensure!(
        said.contains("share: a word of the host"),
        "not read in the second boot: {said}"
    );
    let daemon = guest.daemon()?;
    signal("KILL", daemon["pid"].as_u64().context("the daemon")?)?;
    guest.wait("share: nothing hangs")?;
    let said = guest.said();
    ensure!(said.contains("share: ls has failed"), "no error: {said}");
    guest.wait_for_log(&format!("the daemon of --share {option} is lost"))?;
    guest.end()?;
    fs::remove_file(&program)?;
    Ok(fs::remove_dir_all(&folder)?)
}
