//! Disks and shared folders: the daemons that serve them, and the devices in front of these.

mod options;
mod process;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use thiserror::Error;

use self::process::Daemon;
use crate::devices::vhost_user::{DaemonStatus, Kind, VhostUser, VhostUserError};

pub use self::options::{DaemonOptionError, DiskOption, ShareOption, VhostUserOption};

/// A program that serves devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    name: &'static str,
    option: &'static str,
    package: &'static str,
}

const STORAGE: Program = Program {
    name: "qemu-storage-daemon",
    option: "--disk",
    package: "install Debian 13's package qemu-utils, or Debian 12's qemu-system-common",
};
const SHARING: Program = Program {
    name: "virtiofsd",
    option: "--share",
    package: "install Debian 13's package virtiofsd, or the crate virtiofsd with `cargo install`",
};

/// Folders with programs beside those of `PATH`.
const FOLDERS: [&str; 1] = ["/usr/libexec"];

/// Why a device with a daemon cannot be had.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// What is to be served cannot be used.
    #[error("cannot use {} for {}: check the path and its permissions", .path.display(), .option)]
    Open {
        /// `--disk` or `--share`.
        option: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not {what}: give one to {option}", .path.display())]
    Kind {
        /// `--disk` or `--share`.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// The program is not installed.
    #[error("{} needs {}, which is not installed: {}", .0.option, .0.name, .0.package)]
    NotInstalled(Program),
    /// The system does not start it.
    #[error("cannot start {name}")]
    Start {
        /// The program.
        name: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// It does not serve the disk or the folder.
    #[error("the daemon of {option} does not serve it: {words}")]
    Refused {
        /// The option.
        option: String,
        /// What it said, or what is wrong with what it did.
        words: String,
    },
    /// Another VM, or a program of QEMU's, has the image.
    #[error(
        "the image of {0} is in use: end the VM or program that has it, or give `readonly` to all of them"
    )]
    Busy(String),
    /// Nobody listens at the socket of `--vhost-user`.
    #[error("no daemon can be reached at {}: start it first, and check the path and its permissions", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon of the operator does not do what it should.
    #[error("the daemon at {} cannot be used: is it one of that type, and does it serve nobody else?", .path.display())]
    Operators {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: VhostUserError,
    },
    /// This process has no memory or descriptor left.
    #[error("no memory for a device with a daemon")]
    Host(#[source] VhostUserError),
}

/// The daemons of a VM. Those that this program has started end when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Daemons {
    processes: Vec<Daemon>,
    /// Images of disks, which are locked.
    images: Vec<File>,
    /// What is known of each of them.
    pub(crate) statuses: Vec<Arc<DaemonStatus>>,
}

impl Daemons {
    /// Starts what serves a disk, and makes the device in front of it.
    pub(crate) fn disk(&mut self, disk: &DiskOption) -> Result<VhostUser, DaemonError> {
        let (image, driver) = check_image(disk)?;
        let arguments = |socket| storage_arguments(disk, driver, socket);
        let device = self.start(STORAGE, &disk.text, Kind::Block, arguments)?;
        self.images.push(image);
        Ok(device)
    }

    /// Starts what serves a folder, and makes the device in front of it.
    pub(crate) fn share(&mut self, share: &ShareOption) -> Result<VhostUser, DaemonError> {
        let folder = &share.folder;
        let option = SHARING.option;
        let metadata = fs::metadata(folder).map_err(|source| DaemonError::Open {
            option,
            path: folder.clone(),
            source,
        })?;
        if !metadata.is_dir() {
            return Err(DaemonError::Kind {
                option,
                path: folder.clone(),
                what: "a folder",
            });
        }
        let kind = Kind::FileSystem {
            tag: share.tag.clone(),
        };
        let arguments = |socket| sharing_arguments(folder, socket);
        self.start(SHARING, &share.text, kind, arguments)
    }

    /// Makes the device in front of a daemon that the operator runs.
    pub(crate) fn operators(&mut self, option: &VhostUserOption) -> Result<VhostUser, DaemonError> {
        let path = || option.socket.clone();
        let socket = UnixStream::connect(&option.socket).map_err(|source| {
            let path = path();
            DaemonError::Connect { path, source }
        })?;
        let text = format!("--vhost-user {}", option.text);
        let status = Arc::new(DaemonStatus::new(text, None));
        let device = VhostUser::new(option.kind.clone(), socket, status.clone());
        let device = device.map_err(|source| {
            let path = path();
            DaemonError::Operators { path, source }
        })?;
        self.statuses.push(status);
        Ok(device)
    }

    fn start(
        &mut self,
        program: Program,
        text: &str,
        kind: Kind,
        arguments: impl FnOnce(i32) -> Vec<OsString>,
    ) -> Result<VhostUser, DaemonError> {
        let path = find(program.name).ok_or(DaemonError::NotInstalled(program))?;
        let failed = |source| DaemonError::Start {
            name: program.name,
            source,
        };
        let (listener, socket) = process::connect().map_err(failed)?;
        let arguments = arguments(listener.as_raw_fd());
        let (daemon, pid) = Daemon::start(&path, arguments, &listener).map_err(failed)?;
        // The daemon alone has it: if it ends, the connection does.
        drop(listener);
        let option = format!("{} {text}", program.option);
        let status = Arc::new(DaemonStatus::new(option.clone(), Some(pid)));
        match VhostUser::new(kind, socket, status.clone()) {
            Ok(device) => {
                daemon.supervise(status.clone());
                self.processes.push(daemon);
                self.statuses.push(status);
                Ok(device)
            }
            Err(VhostUserError::Link(error)) => {
                let words = daemon.last_words();
                let words = match words.is_empty() {
                    true => error.to_string(),
                    false => words,
                };
                // QEMU's words for an image that another process has locked.
                Err(
                    match words.contains("Failed to get") && words.contains("lock") {
                        true => DaemonError::Busy(option),
                        false => DaemonError::Refused { option, words },
                    },
                )
            }
            Err(error) => Err(DaemonError::Host(error)),
        }
    }
}

/// Looks at an image, and locks it for this VM; also returns QEMU's name for what it is.
fn check_image(disk: &DiskOption) -> Result<(File, &'static str), DaemonError> {
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
fn storage_arguments(disk: &DiskOption, driver: &str, socket: i32) -> Vec<OsString> {
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

/// The arguments of `virtiofsd`. Namespaces of its own are only root's.
fn sharing_arguments(folder: &Path, socket: i32) -> Vec<OsString> {
    // SAFETY: the call has no arguments and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let sandbox = if is_root { "namespace" } else { "none" };
    vec![
        format!("--fd={socket}").into(),
        "--shared-dir".into(),
        folder.into(),
        format!("--sandbox={sandbox}").into(),
    ]
}

/// Where a program is.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    let mut programs = folders.map(|folder| folder.join(name));
    programs.find(|program| {
        let metadata = fs::metadata(program);
        metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::devices::{Activation, ActiveQueue, DeviceInterrupt, VirtioDevice};
    use crate::host_memory::HostPages;
    use crate::vmm::irq::Interrupt;
    use crate::vmm::memory::{GuestRam, Layout, MIN_RAM};

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

    /// Where a driver in the test has its queue and buffers.
    const TABLE: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const HEAD: u64 = 0x4000;
    const DATA: u64 = 0x5000;
    const STATUS: u64 = 0x6000;
    const SIZE: u16 = 16;

    struct NoLine;

    impl Interrupt for NoLine {
        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A driver that asks for one sector at a time.
    struct Driver {
        ram: GuestRam,
        kick: EventFd,
        asked: u16,
    }

    impl Driver {
        fn start(device: &mut VhostUser) -> Self {
            let ram = Layout::new(MIN_RAM).unwrap().allocate(HostPages::Standard);
            let ram = ram.unwrap();
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(Some(TABLE as u32), None);
            queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
            queue.set_used_ring_address(Some(USED as u32), None);
            queue.set_ready(true);
            let activation = Activation {
                memory: ram.clone(),
                queues: vec![ActiveQueue {
                    index: 0,
                    queue,
                    kick: kick.try_clone().unwrap(),
                }],
                interrupt: DeviceInterrupt::new(NoLine),
                features: 1 << VIRTIO_F_VERSION_1,
            };
            device.activate(activation).unwrap();
            Self {
                ram,
                kick,
                asked: 0,
            }
        }

        /// Has sector 1 read or written; the status, once it is there.
        fn request(&mut self, is_write: bool) -> u8 {
            let put = |index: u64, descriptor: Descriptor| {
                let raw = RawDescriptor::from(descriptor);
                let at = GuestAddress(TABLE + 16 * index);
                self.ram.write_obj(raw, at).unwrap();
            };
            let [next, written] = [VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16];
            let data = if is_write { next } else { next | written };
            put(0, Descriptor::new(HEAD, 16, next, 1));
            put(1, Descriptor::new(DATA, 512, data, 2));
            put(2, Descriptor::new(STATUS, 1, written, 0));
            let kind = u32::from(is_write);
            self.ram.write_obj(kind, GuestAddress(HEAD)).unwrap();
            self.ram.write_obj(1u64, GuestAddress(HEAD + 8)).unwrap();
            self.ram.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
            self.asked += 1;
            let index = GuestAddress(AVAILABLE + 2);
            self.ram
                .store(self.asked, index, Ordering::Release)
                .unwrap();
            self.kick.write(1).unwrap();
            let used = GuestAddress(USED + 2);
            while self.ram.load::<u16>(used, Ordering::Acquire).unwrap() != self.asked {
                std::thread::yield_now();
            }
            self.ram.read_obj(GuestAddress(STATUS)).unwrap()
        }

        fn data(&self) -> u8 {
            self.ram.read_obj(GuestAddress(DATA + 511)).unwrap()
        }
    }

    /// Files in memory of guests that a process has mapped.
    fn rams(pid: u32) -> usize {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        maps.lines()
            .filter(|line| line.contains("vmsrs-ram"))
            .count()
    }

    #[test]
    fn a_disk_serves_boot_after_boot_and_fails_without_its_daemon() {
        if find(STORAGE.name).is_none() {
            eprintln!("skipped: {} is not installed", STORAGE.name);
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let image = place.path().join("disk.img");
        fs::write(&image, [0; 1 << 16]).unwrap();
        let mut daemons = Daemons::default();
        let disk = image.to_str().unwrap().parse().unwrap();
        let mut device = daemons.disk(&disk).unwrap();
        let mut capacity = [0; 8];
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 128);
        let pid = daemons.statuses[0].pid.unwrap();

        let mut driver = Driver::start(&mut device);
        driver
            .ram
            .write_slice(&[7; 512], GuestAddress(DATA))
            .unwrap();
        assert_eq!(driver.request(true), 0);
        assert_eq!(rams(pid), 1);
        device.reset();
        assert_eq!(
            rams(pid),
            0,
            "the daemon keeps RAM of a guest that has gone"
        );

        let mut driver = Driver::start(&mut device);
        assert_eq!((driver.request(false), driver.data()), (0, 7));
        assert_eq!(rams(pid), 1);
        assert!(matches!(
            Daemons::default().disk(&disk),
            Err(DaemonError::Busy(_))
        ));

        daemons.processes.clear();
        for _ in 0..2 {
            assert_eq!(driver.request(false), 1);
        }
        assert!(daemons.statuses[0].is_lost());
        device.reset();
        let mut driver = Driver::start(&mut device);
        assert_eq!(driver.request(false), 1);
        assert_eq!(fs::read(&image).unwrap()[1023], 7);
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-vmsrs"), None);
    }
}
