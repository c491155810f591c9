//! Daemons with drivers of the test's own.

use std::fs;
use std::io;
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
