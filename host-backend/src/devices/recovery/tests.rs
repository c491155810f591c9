//! The device between a driver's queues in memory and its threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmsrs_protocol::control::{
    AddExtent, AppReply, ControlHeader, MESSAGE_ADD_EXTENT, MESSAGE_BYTES_MAX, MESSAGE_OPEN_APP,
    MESSAGE_OPEN_DOMAIN, MESSAGE_SEAL, OpenApp, OpenDomain, ReplyHeader, STATUS_MALFORMED,
    STATUS_OK, STATUS_UNKNOWN, SealReply, SealRequest,
};
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::event::{EVENT_SEALED_WRITE, Event};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{NONE, PAGE_SIZE};

use super::*;
use crate::control::{IncidentFacts, snapshot};
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::engine::SealedWrite;
use crate::host_memory::HostPages;
use crate::vmm::irq::Interrupt;
use crate::vmm::memory::tests::lose;
use crate::vmm::memory::{Layout, MIN_RAM, for_devices};

/// Frames of pool and vault.
const FRAMES: u32 = 1024;
const ADDRESSES: RegionAddresses = RegionAddresses {
    pool: GuestAddress(1 << 32),
    vault: GuestAddress(1 << 33),
};
const NO_SCRUB: ScrubRate = ScrubRate {
    bytes_per_second: 0,
};
/// Where messages lie, beyond the mock queue's own memory.
const MESSAGE: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
const NOWHERE: u64 = 0xf000_0000;

/// Long enough for any machine; only a failing test waits that long.
const TIMEOUT: Duration = Duration::from_secs(20);

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100_0000)]).unwrap()
}

fn device() -> RecoveryDevice {
    let config = EngineConfig::for_frames(FRAMES);
    let regions = Regions::new(config.pool_frames, config.vault_frames, HostPages::Standard);
    RecoveryDevice::new(config, regions.unwrap(), ADDRESSES, NO_SCRUB).unwrap()
}

fn message<T: Pod>(kind: u32, payload: &T) -> Vec<u8> {
    let header = ControlHeader {
        kind,
        length: size_of::<T>() as u32,
    };
    [bytes_of(&header), bytes_of(payload)].concat()
}

fn open_app() -> Vec<u8> {
    let mut payload = OpenApp::zeroed();
    payload.name[..6].copy_from_slice(b"ledger");
    message(MESSAGE_OPEN_APP, &payload)
}

fn readable(address: u64, length: u32) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, 0, 0))
}

fn writable(address: u64, length: u32) -> RawDescriptor {
    let flags = VRING_DESC_F_WRITE as u16;
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}

/// Sends one chain over a fresh queue to `handle`; returns the used length.
fn send(handle: &EngineHandle, memory: &GuestMemoryMmap, chain: &[RawDescriptor]) -> u32 {
    memory.write_slice(&[0; 0x4000], GuestAddress(0)).unwrap();
    let mock = MockSplitQueue::new(memory, 16);
    mock.build_desc_chain(chain).unwrap();
    serve(handle, memory, &mock)
}

fn serve(
    handle: &EngineHandle,
    memory: &GuestMemoryMmap,
    mock: &MockSplitQueue<'_, GuestMemoryMmap>,
) -> u32 {
    let mut queue: Queue = mock.create_queue().unwrap();
    let more = control::process(&mut queue, memory, handle, &mut Vec::new()).unwrap();
    assert!(!more);
    assert_eq!(mock.used().idx().load(), 1);
    mock.used().ring().ref_at(0).unwrap().load().len()
}

fn reply_header(memory: &GuestMemoryMmap) -> ReplyHeader {
    reply_at(memory, 0)
}

fn reply_at<T: Pod>(memory: &GuestMemoryMmap, offset: u64) -> T {
    let mut bytes = vec![0; size_of::<T>()];
    memory
        .read_slice(&mut bytes, GuestAddress(REPLY + offset))
        .unwrap();
    pod_read_unaligned(&bytes)
}

fn refusals(handle: &EngineHandle) -> u64 {
    snapshot::status(handle)
        .refusals
        .iter()
        .map(|refusal| refusal.count)
        .sum()
}

#[test]
fn message_and_reply_may_span_descriptors() {
    let (device, memory) = (device(), memory());
    let bytes = open_app();
    memory.write_slice(&bytes, GuestAddress(MESSAGE)).unwrap();
    let rest = bytes.len() as u32 - 5;
    let chain = [
        readable(MESSAGE, 5),
        readable(MESSAGE + 5, rest),
        writable(REPLY, 3),
        writable(REPLY + 3, 100),
    ];
    let length = send(&device.handle(), &memory, &chain);
    assert_eq!(
        length as usize,
        size_of::<ReplyHeader>() + size_of::<AppReply>()
    );
    assert_eq!(reply_header(&memory).status, STATUS_OK);
    assert_eq!(reply_at::<AppReply>(&memory, 8).app, 0);
}

#[test]
fn malformed_chain_is_refused_and_counted() {
    let (device, memory) = (device(), memory());
    let handle = device.handle();
    let bytes = open_app();
    let length = bytes.len() as u32;
    memory.write_slice(&bytes, GuestAddress(MESSAGE)).unwrap();
    let chains: [(&str, Vec<RawDescriptor>, bool); 9] = [
        ("no writable part", vec![readable(MESSAGE, length)], false),
        ("no readable part", vec![writable(REPLY, 64)], true),
        (
            "readable after writable",
            vec![writable(REPLY, 64), readable(MESSAGE, length)],
            true,
        ),
        (
            "too long",
            vec![
                readable(MESSAGE, MESSAGE_BYTES_MAX + 1),
                writable(REPLY, 64),
            ],
            true,
        ),
        (
            "a total that is too long",
            vec![
                readable(MESSAGE, MESSAGE_BYTES_MAX),
                readable(MESSAGE, 1),
                writable(REPLY, 64),
            ],
            true,
        ),
        (
            "message outside RAM",
            vec![readable(NOWHERE, length), writable(REPLY, 64)],
            true,
        ),
        (
            "reply outside RAM",
            vec![readable(MESSAGE, length), writable(NOWHERE, 64)],
            false,
        ),
        (
            "reply without room for its header",
            vec![readable(MESSAGE, length), writable(REPLY, 7)],
            false,
        ),
        (
            "shorter than its header says",
            vec![readable(MESSAGE, length - 1), writable(REPLY, 64)],
            true,
        ),
    ];
    for (number, (what, chain, answered)) in (1u64..).zip(chains) {
        let used = send(&handle, &memory, &chain);
        if answered {
            assert_eq!(used, 8, "{what}");
            assert_eq!(reply_header(&memory).status, STATUS_MALFORMED, "{what}");
        } else {
            assert_eq!(used, 0, "{what}");
        }
        assert_eq!(refusals(&handle), number, "{what}");
    }
    assert_eq!(snapshot::status(&handle).apps, 0);
    let chain = [readable(MESSAGE, length), writable(REPLY, 64)];
    send(&handle, &memory, &chain);
    assert_eq!(reply_header(&memory).status, STATUS_OK);
}

#[test]
fn a_chain_that_is_a_loop_is_refused() {
    let (device, memory) = (device(), memory());
    let mock = MockSplitQueue::new(&memory, 16);
    let next = VRING_DESC_F_NEXT as u16;
    let write = VRING_DESC_F_WRITE as u16;
    let table = [
        Descriptor::new(MESSAGE, 4, next, 1),
        Descriptor::new(REPLY, 64, next | write, 1),
    ];
    for (index, descriptor) in (0u16..).zip(table) {
        let raw = RawDescriptor::from(descriptor);
        mock.desc_table().store(index, raw).unwrap();
    }
    mock.avail().ring().ref_at(0).unwrap().store(0);
    mock.avail().idx().store(1);
    assert_eq!(serve(&device.handle(), &memory, &mock), 8);
    assert_eq!(reply_header(&memory).status, STATUS_MALFORMED);
    assert_eq!(refusals(&device.handle()), 1);
}

#[test]
fn an_unknown_kind_of_message_is_refused_and_counted() {
    let (device, memory) = (device(), memory());
    let bytes = message(4711, &0u32);
    memory.write_slice(&bytes, GuestAddress(MESSAGE)).unwrap();
    let chain = [readable(MESSAGE, bytes.len() as u32), writable(REPLY, 64)];
    for count in 1..4 {
        send(&device.handle(), &memory, &chain);
        assert_eq!(reply_header(&memory).status, STATUS_UNKNOWN);
        let refusals = snapshot::status(&device.handle()).refusals;
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].count, count);
    }
}

#[test]
fn a_chain_whose_head_is_out_of_range_is_an_error() {
    let (device, memory) = (device(), memory());
    for head in [16, 0x7fff, u16::MAX] {
        let mock = MockSplitQueue::new(&memory, 16);
        mock.avail().ring().ref_at(0).unwrap().store(head);
        mock.avail().idx().store(1);
        let mut queue: Queue = mock.create_queue().unwrap();
        assert!(control::process(&mut queue, &memory, &device.handle(), &mut Vec::new()).is_err());
        assert_eq!(mock.used().idx().load(), 0);
    }
}

#[test]
fn rings_that_make_no_sense_are_an_error() {
    let (device, memory) = (device(), memory());
    let mock = MockSplitQueue::new(&memory, 16);
    mock.avail().idx().store(100);
    let mut queue: Queue = mock.create_queue().unwrap();
    assert!(control::process(&mut queue, &memory, &device.handle(), &mut Vec::new()).is_err());
}

/// An interrupt line that tells a test.
struct Line {
    sender: Mutex<Sender<()>>,
    machine_check: Arc<AtomicBool>,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        // A test that no longer listens does not care.
        let _ = self.sender.lock().unwrap().send(());
        Ok(())
    }

    fn machine_check(&self) {
        self.machine_check.store(true, Ordering::SeqCst);
        self.trigger().unwrap();
    }
}

/// A driver's side of one queue. (The mock queue's used ring overlaps the second half of its
/// available ring, so it is good for a few chains only.)
struct Ring<'a> {
    memory: &'a GuestMemoryMmap,
    /// Address of the descriptor table; the rings follow at fixed distances.
    start: u64,
    kick: EventFd,
    sent: u16,
}

impl<'a> Ring<'a> {
    const SIZE: u16 = 16;
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn new(memory: &'a GuestMemoryMmap, start: u64) -> Self {
        memory
            .write_slice(&[0; 0x3000], GuestAddress(start))
            .unwrap();
        Self {
            memory,
            start,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            sent: 0,
        }
    }

    fn active(&self, index: u16) -> ActiveQueue {
        let mut queue = Queue::new(Self::SIZE).unwrap();
        queue.set_size(Self::SIZE);
        queue.set_desc_table_address(Some(self.start as u32), Some(0));
        queue.set_avail_ring_address(Some((self.start + Self::AVAIL) as u32), Some(0));
        queue.set_used_ring_address(Some((self.start + Self::USED) as u32), Some(0));
        queue.set_ready(true);
        ActiveQueue {
            index,
            queue,
            kick: self.kick.try_clone().unwrap(),
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, offset: u64) {
        let address = GuestAddress(self.start + offset);
        self.memory.write_obj(value, address).unwrap();
    }

    /// Makes a chain of at most two descriptors available.
    fn send(&mut self, chain: &[RawDescriptor]) {
        let first = (self.sent * 2) % Self::SIZE;
        for (index, &raw) in (first..).zip(chain) {
            let descriptor = Descriptor::from(raw);
            let more = index - first + 1 < chain.len() as u16;
            let flags = descriptor.flags() | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            let linked = Descriptor::new(descriptor.addr().0, descriptor.len(), flags, index + 1);
            self.put(RawDescriptor::from(linked), u64::from(index) * 16);
        }
        let slot = u64::from(self.sent % Self::SIZE);
        self.put(first, Self::AVAIL + 4 + slot * 2);
        self.sent += 1;
        self.set_available(self.sent);
    }

    fn set_available(&self, index: u16) {
        self.put(index, Self::AVAIL + 2);
        self.kick.write(1).unwrap();
    }

    fn used(&self) -> u16 {
        let address = GuestAddress(self.start + Self::USED + 2);
        self.memory
            .load(address, std::sync::atomic::Ordering::Acquire)
            .unwrap()
    }
}

/// A running device with its driver.
struct Bench<'a> {
    device: RecoveryDevice,
    memory: &'a GuestMemoryMmap,
    control: Ring<'a>,
    event: Ring<'a>,
    interrupts: Receiver<()>,
    machine_check: Arc<AtomicBool>,
}

impl<'a> Bench<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Self {
        let mut bench = Self {
            device: device(),
            memory,
            control: Ring::new(memory, 0),
            event: Ring::new(memory, 0x8000),
            interrupts: mpsc::channel().1,
            machine_check: Arc::default(),
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.control = Ring::new(self.memory, 0);
        self.event = Ring::new(self.memory, 0x8000);
        let (sender, interrupts) = mpsc::channel();
        self.interrupts = interrupts;
        self.device
            .activate(Activation {
                memory: self.memory.clone(),
                queues: vec![self.control.active(0), self.event.active(1)],
                interrupt: DeviceInterrupt::new(Line {
                    sender: Mutex::new(sender),
                    machine_check: self.machine_check.clone(),
                }),
                features: self.device.features() & !(1 << VIRTIO_RING_F_EVENT_IDX),
            })
            .unwrap();
    }

    fn config(&self) -> DeviceConfig {
        let mut bytes = [0; size_of::<DeviceConfig>()];
        self.device.read_config(0, &mut bytes);
        pod_read_unaligned(&bytes)
    }

    fn wait(&self, done: impl Fn() -> bool) {
        while !done() {
            self.interrupts.recv_timeout(TIMEOUT).unwrap();
        }
    }

    fn call(&mut self, message: &[u8]) -> ReplyHeader {
        self.memory
            .write_slice(message, GuestAddress(MESSAGE))
            .unwrap();
        self.control.send(&[
            readable(MESSAGE, message.len() as u32),
            writable(REPLY, 4096),
        ]);
        let sent = self.control.sent;
        self.wait(|| self.control.used() == sent);
        reply_header(self.memory)
    }

    /// Opens an app and a domain of `pages` pages in it.
    fn open(&mut self, pages: u32) {
        assert_eq!(self.call(&open_app()).status, STATUS_OK);
        let mut domain = OpenDomain {
            key_length: 1,
            ..OpenDomain::zeroed()
        };
        domain.key[0] = b'a';
        let domain = message(MESSAGE_OPEN_DOMAIN, &domain);
        assert_eq!(self.call(&domain).status, STATUS_OK);
        let extent = AddExtent {
            pages,
            ..AddExtent::default()
        };
        let extent = message(MESSAGE_ADD_EXTENT, &extent);
        assert_eq!(self.call(&extent).status, STATUS_OK);
    }

    /// Seals pages of the first domain, from pool frames of the same numbers. `vault` has the frames that
    /// the pages have, and gets the new ones.
    fn seal(&mut self, vault: &mut [u32], flags: u32) {
        let records: Vec<SealRecord> = (0..)
            .zip(&*vault)
            .map(|(page, &vault_frame)| SealRecord {
                page,
                pool_frame: page,
                vault_frame,
                ..SealRecord::default()
            })
            .collect();
        let request = SealRequest {
            records: records.len() as u32,
            flags,
        };
        let header = ControlHeader {
            kind: MESSAGE_SEAL,
            length: (size_of::<SealRequest>() + size_of_val(&*records)) as u32,
        };
        let list: &[u8] = bytemuck::cast_slice(&records);
        let header = self.call(&[bytes_of(&header), bytes_of(&request), list].concat());
        let refusals = snapshot::status(&self.device.handle()).refusals;
        assert_eq!(header.status, STATUS_OK, "{refusals:?}");
        let reply: SealReply = reply_at(self.memory, 8);
        assert_eq!(
            (reply.sealed, reply.refusal),
            (request.records, STATUS_OK),
            "{refusals:?}"
        );
        for (offset, frame) in (16..).step_by(4).zip(vault) {
            *frame = reply_at(self.memory, offset);
        }
    }

    /// Gives the device a buffer for an event and waits for it.
    fn event(&mut self) -> Event {
        let buffer = REPLY + 0x1000;
        self.event
            .send(&[writable(buffer, size_of::<Event>() as u32)]);
        let sent = self.event.sent;
        self.wait(|| self.event.used() == sent);
        reply_at(self.memory, 0x1000)
    }
}

#[test]
fn pages_are_sealed_over_the_running_queues() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.open(8);
    let mut vault = [NONE; 8];
    bench.seal(&mut vault, SEAL_LAST);
    let status = snapshot::status(&bench.device.handle());
    // With the zero frame.
    assert_eq!((status.sealed_frames, status.batches), (9, 1));
    assert!(vault.iter().all(|&frame| frame < status.vault_frames));
}

#[test]
fn useless_buffers_do_not_block_the_device() {
    const SIZE: u16 = 256;
    let (device, memory) = (device(), memory());
    let handle = device.handle();
    handle.sealed_write(SealedWrite::default());
    // Every buffer is the same empty one: the event goes on waiting.
    let mock = MockSplitQueue::new(&memory, SIZE);
    let mut queue: Queue = mock.create_queue().unwrap();
    queue.set_used_ring_address(Some(REPLY as u32), Some(0));
    mock.avail().idx().store(SIZE);
    for turn in 1..=4 {
        let more = events::process(&mut queue, &memory, &handle).unwrap();
        assert!(more, "turn {turn}");
        let used: Result<u16, _> = memory.load(
            GuestAddress(REPLY + 2),
            std::sync::atomic::Ordering::Acquire,
        );
        assert_eq!(used.unwrap(), turn * events::TURN as u16);
    }
    assert!(!events::process(&mut queue, &memory, &handle).unwrap());
    assert!(handle.has_events());
}

#[test]
fn a_sealed_write_reaches_the_driver_as_an_event() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let write = SealedWrite {
        frame: 9,
        vcpu: 1,
        address: 0xdead_0000,
        instruction: 0xffff_ffff_8100_0000,
        ..SealedWrite::default()
    };
    let number = bench.device.handle().sealed_write(write);
    let event = bench.event();
    assert_eq!(event.kind, EVENT_SEALED_WRITE);
    assert_eq!(event.incident, number);
    assert_eq!(event.address, 0xdead_0000);
    let detail = bench
        .device
        .handle()
        .read(|engine| snapshot::incident(engine, number))
        .unwrap();
    let IncidentFacts::SealedWrite(facts) = detail.facts else {
        panic!("{detail:?}");
    };
    assert_eq!(facts.frame, 9);
}

#[test]
fn seals_never_wait_for_the_cleanser() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // So many pages at a time that the vault's spare frames are used over and over.
    bench.open(128);
    assert_eq!(bench.config().pool_frames, 128);
    let mut vault = [NONE; 128];
    for _ in 0..100 {
        bench.seal(&mut vault, SEAL_LAST);
    }
    let handle = bench.device.handle();
    assert_eq!(snapshot::status(&handle).sealed_pages, 12_800);
    // The cleanser catches up.
    while handle.read(|engine| engine.has_retired()) {
        std::thread::yield_now();
    }
    let status = snapshot::status(&handle);
    assert_eq!((status.retired_frames, status.sealed_frames), (0, 129));
}

#[test]
fn a_reset_drops_what_is_staged_and_keeps_the_apps() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.open(8);
    bench.seal(&mut [NONE; 2], SEAL_LAST);
    let handle = bench.device.handle();
    let mut staged = [NONE; 8];
    staged[..2].copy_from_slice(&handle.read(|engine| {
        let (pages, _) = engine.list_pages(0, 0, 0, 2).unwrap();
        [pages[0].frame, pages[1].frame]
    }));
    bench.seal(&mut staged, 0);
    assert_eq!(snapshot::status(&handle).staged_frames, 8);
    let before = bench.config();
    bench.device.reset();
    let after = bench.config();
    assert!(after.tag_base > before.tag_base);
    assert!(after.incident_base > before.incident_base);
    bench.start();
    let status = snapshot::status(&handle);
    assert_eq!((status.apps, status.resets), (1, 1));
    assert_eq!((status.staged_frames, status.sealed_frames), (0, 3));
}

#[test]
fn broken_rings_stop_only_the_device() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.control.set_available(999);
    let handle = bench.device.handle();
    bench.wait(|| refusals(&handle) == 1);
    bench.device.reset();
    bench.start();
    assert_eq!(bench.call(&open_app()).status, STATUS_OK);
}

#[test]
fn limits_for_other_regions_are_refused() {
    let config = EngineConfig::for_frames(FRAMES);
    let regions = Regions::new(config.pool_frames, config.vault_frames, HostPages::Standard);
    let other = EngineConfig::for_frames(FRAMES * 2);
    let result = RecoveryDevice::new(other, regions.unwrap(), ADDRESSES, NO_SCRUB);
    assert!(matches!(
        result,
        Err(RecoveryDeviceError::RegionSize { .. })
    ));
}

#[test]
fn message_in_broken_memory_ends_the_guest() {
    let ram = Layout::new(MIN_RAM)
        .unwrap()
        .allocate(HostPages::Standard)
        .unwrap();
    let memory = for_devices(&ram).unwrap();
    let mut bench = Bench::new(&memory);
    let page = MIN_RAM - u64::from(PAGE_SIZE);
    lose(&ram, page);
    bench
        .control
        .send(&[readable(page, 64), writable(REPLY, 4096)]);
    bench.wait(|| bench.machine_check.load(Ordering::SeqCst));
    let refusals = snapshot::status(&bench.device.handle()).refusals;
    let reasons: Vec<_> = refusals.iter().map(|count| &*count.what).collect();
    assert_eq!(reasons, ["the memory of a message is broken"]);
    bench.device.reset();
    assert_eq!(snapshot::status(&bench.device.handle()).resets, 1);
}
