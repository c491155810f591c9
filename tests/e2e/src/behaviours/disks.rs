//! Disks that daemons serve: data is there after the guest's panic, and the end of a daemon is an I/O error.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs_bed::guest::{self, Config};

use crate::host::Guest;
use crate::limits::{BOOT_LIMIT, EVENT_LIMIT};
use crate::{Behaviour, Machine};

/// A disk of `vmsrs run`.
pub(super) const DISK: Behaviour = Behaviour {
    name: "disk_outlives_a_panic_and_its_daemon_s_end_is_an_io_error",
    machine: Machine::Usual,
    steps: &[],
    host: disk,
};

/// A disk of a daemon that runs already.
pub(super) const OPERATORS: Behaviour = Behaviour {
    name: "disk_of_a_running_daemon_serves_guest_after_guest",
    machine: Machine::Usual,
    steps: &[],
    host: operators,
};

/// Size of the disk.
const BYTES: u64 = 32 << 20;

/// The init of a guest with a disk. In its first boot it makes a file system, and panics as soon as its data is synced. In the
/// next one it compares the data, and then reads and writes until that fails.
pub const INIT: &str = r#"
# Its I/O errors would come into the middle of what this says on the same console.
echo 1 >/proc/sys/kernel/printk
echo "disk: $(cat /sys/block/vda/size) sectors, read-only $(cat /sys/block/vda/ro)"
mkdir /mnt
if mount -t ext4 /dev/vda /mnt; then
	(cd /mnt && sha256sum -c sums >/dev/null) && echo "disk: the data is there"
	use() {
		while "$@"; do
			echo 3 >/proc/sys/vm/drop_caches
		done 2>/dev/null
		echo "disk: $1 has failed"
	}
	use dd if=/dev/vda of=/dev/null bs=64k count=64 &
	use dd if=/mnt/data of=/dev/null bs=4k &
	use dd if=/dev/zero of=/mnt/more bs=64k count=4 conv=fsync &
	echo "disk: in use"
	wait
	echo "disk: nothing hangs"
else
	mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt &&
		dd if=/dev/urandom of=/mnt/data bs=64k count=64 &&
		(cd /mnt && sha256sum data >sums) && sync
	echo c >/proc/sysrq-trigger
fi
"#;

/// A guest with a device that a daemon serves, and what it has said.
pub(super) struct ServedGuest(pub(super) guest::Guest);

impl ServedGuest {
    pub(super) fn boot(image: &str, option: &'static str, value: &str) -> Result<Self> {
        let config = Config::new("vmlinux", image);
        let guest = config.memory("256M").restarts(3).option(option, value);
        Ok(Self(guest.boot()?))
    }

    pub(super) fn said(&self) -> String {
        let console = fs::read(self.0.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Waits until the guest has said `text`.
    pub(super) fn wait(&mut self, text: &str) -> Result<()> {
        let console = self.0.console_log();
        let result = self.0.wait(text, BOOT_LIMIT, |_| {
            let said = fs::read(&console).unwrap_or_default();
            let is_said = String::from_utf8_lossy(&said).contains(text);
            Ok::<_, anyhow::Error>(is_said.then_some(()))
        });
        result.with_context(|| self.0.logs())
    }

    /// Waits until `vmsrs run` has logged `text`.
    pub(super) fn wait_for_log(&mut self, text: &str) -> Result<()> {
        let result = self.0.wait(text, EVENT_LIMIT, |guest| {
            let is_logged = guest.log()?.contains(text);
            Ok::<_, anyhow::Error>(is_logged.then_some(()))
        });
        result.with_context(|| self.0.logs())
    }

    /// What is known of the only daemon.
    pub(super) fn daemon(&self) -> Result<Value> {
        Ok(self.0.control().status()?["daemons"][0].take())
    }

    /// Waits until the guest has turned itself off.
    pub(super) fn end(mut self) -> Result<()> {
        let status = self.0.wait_for_end("the guest's end", BOOT_LIMIT)?;
        ensure!(
            status.success(),
            "vmsrs ended with {status}\n{}",
            self.0.logs()
        );
        Ok(())
    }
}

/// A folder with a disk in it; removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("e2e-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let place = Self(folder);
        File::create(place.disk())?.set_len(BYTES)?;
        Ok(place)
    }

    fn disk(&self) -> PathBuf {
        self.0.join("disk.img")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn signal(signal: &str, pid: u64) -> Result<()> {
    let kill = format!("kill -{signal} {pid}");
    let status = Command::new("sh").args(["-c", &kill]).status()?;
    ensure!(status.success(), "{kill}: {status}");
    Ok(())
}

/// The files in memory that a process has mapped, and all that it has open.
fn belongings(pid: u64) -> Result<(BTreeSet<String>, Vec<String>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mapped = maps.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        let inode = (fields.next()?, fields.next()?);
        let name = fields.next().filter(|name| name.starts_with("/memfd:"))?;
        Some(format!("{name} {} {}", inode.0, inode.1))
    });
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let open = fs::read_dir(folder)?.filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        Some(target.to_string_lossy().into_owned())
    });
    Ok((mapped.collect(), open.collect()))
}

/// A daemon has guest RAM, of this boot alone, and rings; nothing of pool, vault and KVM.
fn ensure_only_ram(pid: u64) -> Result<()> {
    let (mapped, open) = belongings(pid)?;
    let of = |name: &str| mapped.iter().filter(|file| file.contains(name)).count();
    ensure!(
        of("vmsrs-ram") == 1 && of("vmsrs-rings") == 1 && mapped.len() == 2,
        "not what a daemon is to map: {mapped:?}"
    );
    let strange = |target: &&String| {
        target.contains("kvm") || target.contains("vault") || target.contains("pool")
    };
    let strange: Vec<_> = open.iter().filter(strange).collect();
    ensure!(strange.is_empty(), "a daemon has {strange:?} open");
    Ok(())
}

fn left_behind() -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(std::env::temp_dir())?.map(|entry| Ok(entry?.path()));
    let mut all: Vec<_> = all.collect::<Result<_>>()?;
    all.retain(|path: &PathBuf| path.to_string_lossy().contains("vmsrs-"));
    all.sort();
    Ok(all)
}

fn disk(_: &mut Guest) -> Result<()> {
    let place = Place::new("disk")?;
    let before = left_behind()?;
    let option = place.disk().to_string_lossy().into_owned();
    let mut guest = ServedGuest::boot("disk-guest.img", "--disk", &option)?;
    guest.wait("disk: the data is there")?;
    guest.wait("disk: in use")?;
    let daemon = guest.daemon()?;
    ensure!(
        daemon["option"] == format!("--disk {option}") && daemon["lost"].is_null(),
        "not the state of a daemon that serves: {daemon}"
    );
    let pid = daemon["pid"].as_u64().context("the daemon's process")?;
    ensure_only_ram(pid)?;
    // Requests are likely to be on their way then, though nothing depends on it.
    signal("STOP", pid)?;
    thread::sleep(Duration::from_secs(1));
    signal("KILL", pid)?;
    guest.wait("disk: nothing hangs")?;
    ensure!(
        guest.said().matches("disk: dd has failed").count() == 3,
        "not three errors: {}",
        guest.said()
    );
    guest.wait_for_log("signal: 9")?;
    let log = guest.0.log()?;
    let message = format!("the daemon of --disk {option} is lost");
    ensure!(
        log.matches(&message).count() == 1,
        "the loss is not reported once: {log}"
    );
    guest.end()?;

    let mut guest = ServedGuest::boot("disk-guest.img", "--disk", &format!("{option},readonly"))?;
    guest.wait("read-only 1")?;
    let pid = guest.daemon()?["pid"].as_u64().context("the daemon")?;
    guest.0.stop()?;
    ensure!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the daemon has outlived its VM"
    );
    let log = guest.0.log()?;
    ensure!(!log.contains("is lost"), "an end is no loss: {log}");
    drop(guest);
    ensure!(
        left_behind()? == before,
        "left behind: {:?}",
        left_behind()?
    );
    Ok(())
}

/// The operator's daemon; killed when dropped.
struct Storage(Child);

impl Storage {
    fn start(disk: &Path, socket: &Path) -> Result<Self> {
        let image = format!("driver=file,node-name=disk,filename={}", disk.display());
        let export = format!(
            "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        let mut daemon = Command::new("qemu-storage-daemon");
        daemon.args(["--blockdev", &image, "--export", &export]);
        Ok(Self(daemon.stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn operators(_: &mut Guest) -> Result<()> {
    let place = Place::new("operators")?;
    let socket = place.0.join("s");
    let storage = Storage::start(&place.disk(), &socket)?;
    let mut waited = Duration::ZERO;
    while !socket.exists() && waited < EVENT_LIMIT {
        thread::sleep(Duration::from_millis(50));
        waited += Duration::from_millis(50);
    }
    let option = format!("blk,socket={}", socket.display());
    let mut guest = ServedGuest::boot("disk-guest.img", "--vhost-user", &option)?;
    guest.wait("disk: the data is there")?;
    guest.wait("disk: in use")?;
    let facts = guest.daemon()?;
    ensure!(
        facts["pid"].is_null() && facts["lost"].is_null(),
        "not the state of a running daemon: {facts}"
    );
    ensure_only_ram(storage.0.id().into())?;
    guest.0.stop()?;
    let mut guest = ServedGuest::boot("disk-guest.img", "--vhost-user", &option)?;
    guest.wait("disk: the data is there")?;
    guest.wait("disk: in use")?;
    drop(storage);
    guest.wait("disk: nothing hangs")?;
    let facts = guest.daemon()?;
    ensure!(
        facts["lost"] == "it closed the connection",
        "the loss is not in the status: {facts}"
    );
    guest.end()
}
