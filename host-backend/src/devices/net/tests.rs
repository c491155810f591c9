//! The network card between a driver's queues in memory and a socket in the tap's place.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use std::fs::File;
use std::io::{self, Read, Write};

use virtio_bindings::virtio_net::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::worker::Serve;
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::vmm::irq::Interrupt;

const RAM: usize = 0x100_0000;
/// Places of a queue's parts, which are `QUEUE_STRIDE` further for the next queue.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const SIZE: u16 = 16;

/// Long enough for any machine; only a failing test waits that long.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An interrupt line that tells a test.
struct Line(Mutex<Sender<()>>);

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        // A test that no longer listens does not care.
        let _ = self.0.lock().unwrap().send(());
        Ok(())
    }
}

/// A machine with a network card: the guest's memory and the other end of its wire.
pub(super) struct Bench {
    memory: GuestMemoryMmap,
    net: Net,
    wire: File,
    interrupt: DeviceInterrupt,
    interrupts: Receiver<()>,
    kicks: [EventFd; 2],
}

fn wire() -> (File, File) {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
    assert_eq!(result, 0);
    let end = |fd| {
        // SAFETY: the descriptor was just returned by the kernel and has no other owner.
        File::from(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the call changes a flag of a descriptor that we own.
    unsafe { libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK) };
    let patience = libc::timeval {
        tv_sec: TIMEOUT.as_secs() as _,
        tv_usec: 0,
    };
    // SAFETY: the option takes a `timeval`, which is valid for the call.
    unsafe {
        libc::setsockopt(
            ends[1],
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of_val(&patience) as _,
        )
    };
    (end(ends[0]), end(ends[1]))
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_mtu(None)
    }

    fn with_mtu(mtu: Option<u16>) -> Self {
        let (tap, wire) = wire();
        let (sender, interrupts) = mpsc::channel();
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap(),
            net: Net::new(Tap::stand_in(tap, mtu), [2, 0, 0, 0, 0, 1]),
            wire,
            interrupt: DeviceInterrupt::new(Line(Mutex::new(sender))),
            interrupts,
            kicks: [
                EventFd::new(EFD_NONBLOCK).unwrap(),
                EventFd::new(EFD_NONBLOCK).unwrap(),
            ],
        }
    }

    fn queue(&self, index: u16) -> Queue {
        let place = |part| Some((part + u64::from(index) * QUEUE_STRIDE) as u32);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(place(DESCRIPTORS), None);
        queue.set_avail_ring_address(place(AVAIL), None);
        queue.set_used_ring_address(place(USED), None);
        queue.set_ready(true);
        queue
    }

    /// Writes into a part of a queue.
    fn write<T: ByteValued>(&self, index: u16, part: u64, offset: u64, value: T) {
        let address = part + u64::from(index) * QUEUE_STRIDE + offset;
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// The index of a queue's used ring.
    fn used_index(&self, index: u16) -> u16 {
        let address = GuestAddress(USED + u64::from(index) * QUEUE_STRIDE + 2);
        self.memory.load(address, Ordering::Acquire).unwrap()
    }

    /// Descriptor and length of an element of the receive queue's used ring.
    fn received(&self, number: u64) -> (u32, u32) {
        let read = |offset| {
            self.memory
                .read_obj(GuestAddress(USED + 4 + 8 * number + offset))
        };
        (read(0).unwrap(), read(4).unwrap())
    }

    /// Makes an entry of a queue's available ring visible to the device.
    fn offer(&self, index: u16, number: u16, head: u16, available: u16) {
        self.write(index, AVAIL, 4 + 2 * u64::from(number), head);
        let address = GuestAddress(AVAIL + u64::from(index) * QUEUE_STRIDE + 2);
        self.memory
            .store(available, address, Ordering::Release)
            .unwrap();
    }

    /// The work on the queues, without its thread.
    pub(super) fn queues(&mut self) -> Queues {
        self.queues_with(0, false)
    }

    /// The work of a driver that has accepted these features.
    fn queues_with(&mut self, features: u64, event_idx: bool) -> Queues {
        let (tap, wire) = wire();
        self.wire = wire;
        let active = |index: u16| {
            let mut queue = self.queue(index);
            queue.set_event_idx(event_idx);
            let kick = self.kicks[usize::from(index)].try_clone().unwrap();
            ActiveQueue { index, queue, kick }
        };
        Queues::new(
            tap,
            Agreed::new(features, None),
            active(QUEUE_RECEIVE),
            active(QUEUE_TRANSMIT),
            self.memory.clone(),
            self.interrupt.clone(),
            self.net.counters(),
        )
        .unwrap()
    }

    /// Reads a part of a queue.
    fn read_obj<T: ByteValued>(&self, index: u16, part: u64) -> T {
        let address = part + u64::from(index) * QUEUE_STRIDE;
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Puts a buffer of one descriptor into a queue, as its `number`-th, with the descriptor of that number.
    fn put_single(&self, index: u16, number: u16, (address, length, writable): (u64, u32, bool)) {
        let flags = if writable { VRING_DESC_F_WRITE } else { 0 };
        let descriptor = Descriptor::new(address, length, flags as u16, 0);
        let at = u64::from(number) * 16;
        self.write(index, DESCRIPTORS, at, RawDescriptor::from(descriptor));
        self.offer(index, number, number, number + 1);
    }

    /// Puts a buffer for a frame into the receive queue.
    pub(super) fn put_receive_buffer(&self) {
        self.put(QUEUE_RECEIVE, 0, &[(BUFFERS, 2048, true)]);
    }

    /// Starts the card without offloads.
    fn start(&mut self) {
        self.start_with(0);
    }

    /// Starts the card for a driver that has accepted these features of its type.
    fn start_with(&mut self, features: u64) {
        let queues = [QUEUE_RECEIVE, QUEUE_TRANSMIT]
            .map(|index| ActiveQueue {
                index,
                queue: self.queue(index),
                kick: self.kicks[usize::from(index)].try_clone().unwrap(),
            })
            .into();
        self.net
            .activate(Activation {
                memory: self.memory.clone(),
                queues,
                interrupt: self.interrupt.clone(),
                features: features | 1 << VIRTIO_F_VERSION_1,
            })
            .unwrap();
    }

    /// Puts a chain of descriptors (address, length, writable) into a queue, as its `number`-th.
    fn put(&self, index: u16, number: u16, parts: &[(u64, u32, bool)]) {
        let head = number * 2;
        for (i, &(address, length, writable)) in (head..).zip(parts) {
            let last = usize::from(i - head) == parts.len() - 1;
            let mut flags = 0;
            if writable {
                flags |= VRING_DESC_F_WRITE as u16;
            }
            if !last {
                flags |= VRING_DESC_F_NEXT as u16;
            }
            let descriptor = Descriptor::new(address, length, flags, i + 1);
            let descriptor = RawDescriptor::from(descriptor);
            self.write(index, DESCRIPTORS, u64::from(i) * 16, descriptor);
        }
        self.offer(index, number, head, number + 1);
    }

    fn kick(&self, index: u16) {
        self.kicks[usize::from(index)].write(1).unwrap();
    }

    /// Sends a frame to the guest.
    fn send(&mut self, frame: &[u8]) {
        self.send_packet([0; HEADER], frame);
    }

    fn send_packet(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let packet = [&header, frame].concat();
        self.wire.write_all(&packet).unwrap();
    }

    /// Waits until the device has used `count` buffers of a queue.
    fn wait_used(&self, index: u16, count: u16) {
        while self.used_index(index) != count {
            match self.interrupts.recv_timeout(TIMEOUT) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => panic!("the device uses no buffer"),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the line is kept"),
            }
        }
    }

    /// The next frame from the guest.
    fn receive(&mut self) -> Vec<u8> {
        let (header, frame) = self.receive_packet();
        assert_eq!(header, [0; HEADER]);
        frame
    }

    fn receive_packet(&mut self) -> ([u8; HEADER], Vec<u8>) {
        let mut packet = vec![0; HEADER + FRAME_MAX];
        let length = self.wire.read(&mut packet).unwrap();
        let header = packet[..HEADER].try_into().unwrap();
        (header, packet[HEADER..length].to_vec())
    }

    /// What is in a buffer of the guest.
    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = GuestAddress(address);
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    /// Restarts the card with empty rings.
    fn restart_with(&mut self, features: u64) {
        self.net.reset();
        for index in [QUEUE_RECEIVE, QUEUE_TRANSMIT] {
            self.write(index, AVAIL, 2, 0u16);
            self.write(index, USED, 2, 0u16);
        }
        self.start_with(features);
    }
}

/// The token of the tap interface in the event loop.
const TAP_TOKEN: u64 = 0;

const FRAME: [u8; 60] = [0x5a; 60];

#[test]
fn a_frame_from_the_wire_reaches_a_buffer_of_the_guest() {
    let mut bench = Bench::new();
    bench.put(
        QUEUE_RECEIVE,
        0,
        &[(BUFFERS, 20, true), (BUFFERS + 0x1000, 2000, true)],
    );
    bench.start();
    bench.send(&FRAME);
    bench.wait_used(QUEUE_RECEIVE, 1);
    let mut head = [0; 20];
    bench
        .memory
        .read_slice(&mut head, GuestAddress(BUFFERS))
        .unwrap();
    assert_eq!(head[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(head[HEADER..], FRAME[..8]);
    let mut tail = [0; 52];
    bench
        .memory
        .read_slice(&mut tail, GuestAddress(BUFFERS + 0x1000))
        .unwrap();
    assert_eq!(tail, FRAME[8..]);
    assert_eq!(bench.received(0), (0, 72));
    assert_eq!(bench.net.counters().snapshot().received, 1);
}

#[test]
fn a_frame_waits_for_the_guest_to_give_a_buffer() {
    let mut bench = Bench::new();
    bench.start();
    for byte in 0..3 {
        bench.send(&[byte; 60]);
    }
    for number in 0..3 {
        let buffer = BUFFERS + u64::from(number) * 0x1000;
        bench.put(QUEUE_RECEIVE, number, &[(buffer, 2000, true)]);
        bench.kick(QUEUE_RECEIVE);
        bench.wait_used(QUEUE_RECEIVE, number + 1);
        let byte: u8 = bench
            .memory
            .read_obj(GuestAddress(buffer + HEADER as u64))
            .unwrap();
        assert_eq!(u16::from(byte), number);
    }
}

#[test]
fn a_frame_from_the_guest_reaches_the_wire() {
    let mut bench = Bench::new();
    bench.start();
    bench
        .memory
        .write_slice(&FRAME, GuestAddress(BUFFERS + 0x1000))
        .unwrap();
    // Fields that mean nothing without offloads may hold anything.
    bench
        .memory
        .write_slice(&[0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], GuestAddress(BUFFERS))
        .unwrap();
    let parts = [
        (BUFFERS, HEADER as u32, false),
        (BUFFERS + 0x1000, 60, false),
    ];
    for number in 0..4 {
        bench.put(QUEUE_TRANSMIT, number, &parts);
        bench.kick(QUEUE_TRANSMIT);
        assert_eq!(bench.receive(), FRAME);
    }
    bench.wait_used(QUEUE_TRANSMIT, 4);
    assert_eq!(bench.net.counters().snapshot().transmitted, 4);
}

#[test]
fn malformed_frames_are_dropped_and_counted() {
    let mut bench = Bench::new();
    bench.start();
    bench
        .memory
        .write_slice(&FRAME, GuestAddress(BUFFERS + HEADER as u64))
        .unwrap();
    let offload = BUFFERS + 0x8000;
    bench.memory.write_obj(1u8, GuestAddress(offload)).unwrap();
    let good = (BUFFERS, 72, false);
    let chains: [&[(u64, u32, bool)]; 7] = [
        &[(BUFFERS, 11, false)],
        &[(BUFFERS, 25, false)],
        &[(offload, 72, false)],
        &[(RAM as u64 - 10, 72, false)],
        &[(u64::MAX - 10, 72, false)],
        &[good, (BUFFERS, FRAME_MAX as u32, false)],
        &[(BUFFERS, 72, true)],
    ];
    for (number, chain) in (0..).zip(chains) {
        bench.put(QUEUE_TRANSMIT, number, chain);
    }
    bench.put(QUEUE_TRANSMIT, 7, &[good]);
    bench.kick(QUEUE_TRANSMIT);
    assert_eq!(bench.receive(), FRAME);
    bench.wait_used(QUEUE_TRANSMIT, 8);
    let counters = bench.net.counters();
    assert_eq!(counters.snapshot().transmitted_dropped, 7);
    let counted: u64 = counters
        .tally()
        .counts()
        .iter()
        .map(|&(_, count)| count)
        .sum();
    assert_eq!(counted, 7);
}

#[test]
fn bad_receive_buffer_costs_its_frame_alone() {
    let mut bench = Bench::new();
    bench.put(QUEUE_RECEIVE, 0, &[(BUFFERS, 71, true)]);
    bench.put(QUEUE_RECEIVE, 1, &[(RAM as u64, 2000, true)]);
    bench.put(QUEUE_RECEIVE, 2, &[(BUFFERS, 2000, false)]);
    bench.put(QUEUE_RECEIVE, 3, &[(BUFFERS, 2000, true)]);
    bench.start();
    for _ in 0..4 {
        bench.send(&FRAME);
    }
    bench.wait_used(QUEUE_RECEIVE, 4);
    let counts = bench.net.counters().snapshot();
    assert_eq!((counts.received, counts.received_dropped), (1, 3));
    assert_eq!(bench.received(1), (2, 0));
}

const MERGED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// Asks for a checksum, and for segments of 1,448 bytes.
const SEGMENTS: [u8; HEADER] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

/// A frame of which every byte is different from those around it.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_long_frame_is_in_several_buffers_that_appear_at_once() {
    let mut bench = Bench::new();
    let frame = pattern(5_000);
    for number in 0..4 {
        let buffer = BUFFERS + u64::from(number) * 0x1000;
        bench.put(QUEUE_RECEIVE, number, &[(buffer, 2_000, true)]);
    }
    bench.start_with(MERGED | OFFLOADS);
    bench.send_packet(SEGMENTS, &frame);
    // Nothing is between none and three of them: the interrupt comes after all.
    bench.interrupts.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(bench.used_index(QUEUE_RECEIVE), 3);
    assert_eq!(
        [0, 1, 2].map(|number| bench.received(number)),
        [(0, 2_000), (2, 2_000), (4, 1_012)]
    );
    let first = bench.read(BUFFERS, 2_000);
    assert_eq!(first[..10], SEGMENTS[..10]);
    assert_eq!(first[10..HEADER], [3, 0]);
    let parts = [
        first[HEADER..].to_vec(),
        bench.read(BUFFERS + 0x1000, 2_000),
        bench.read(BUFFERS + 0x2000, 1_012),
    ];
    assert!(parts.concat() == frame);
    assert_eq!(bench.net.counters().snapshot().received, 1);
    // A short one is in one.
    bench.send(&FRAME);
    bench.wait_used(QUEUE_RECEIVE, 4);
    assert_eq!(bench.received(3), (6, 72));
    assert_eq!(bench.read(BUFFERS + 0x3000, HEADER)[10..], [1, 0]);
}

#[test]
fn a_frame_waits_for_enough_buffers_and_takes_none_before() {
    for event_idx in [false, true] {
        let mut bench = Bench::new();
        let mut queues = bench.queues_with(MERGED | OFFLOADS, event_idx);
        let frame = pattern(5_000);
        let packet = [&SEGMENTS[..], &frame].concat();
        bench.wire.write_all(&packet).unwrap();
        for number in 0..3u16 {
            queues.ready(TAP_TOKEN).unwrap();
            assert_eq!(bench.used_index(QUEUE_RECEIVE), 0);
            // The driver is to tell of the next buffer.
            match event_idx {
                false => {
                    let flags: u16 = bench.read_obj(QUEUE_RECEIVE, USED);
                    assert_eq!(flags, 0);
                }
                true => {
                    let at = USED + 4 + 8 * u64::from(SIZE);
                    let event: u16 = bench.read_obj(QUEUE_RECEIVE, at);
                    assert_eq!(event, number);
                }
            }
            let buffer = BUFFERS + u64::from(number) * 0x1000;
            bench.put(QUEUE_RECEIVE, number, &[(buffer, 2_000, true)]);
        }
        queues.ready(TAP_TOKEN).unwrap();
        assert_eq!(bench.used_index(QUEUE_RECEIVE), 3);
        assert_eq!(bench.received(2), (4, 1_012));
        assert_eq!(bench.interrupts.try_iter().count(), 1);
    }
}

#[test]
fn a_frame_that_no_buffers_can_take_is_lost() {
    let mut bench = Bench::new();
    for number in 0..SIZE {
        // Each descriptor of the queue, with buffers of 20 bytes.
        bench.put_single(QUEUE_RECEIVE, number, (BUFFERS, 20, true));
    }
    bench.start_with(MERGED);
    bench.send(&pattern(1_000));
    bench.wait_used(QUEUE_RECEIVE, SIZE);
    let counts = bench.net.counters().snapshot();
    assert_eq!((counts.received, counts.received_dropped), (0, 1));
    assert!((0..u64::from(SIZE)).all(|number| bench.received(number).1 == 0));
}

#[test]
fn a_bad_buffer_among_several_costs_its_frame_alone() {
    let bad: [&[(u64, u32, bool)]; 4] = [
        &[(RAM as u64, 2_000, true)],
        &[(BUFFERS, 2_000, false)],
        &[(BUFFERS, 11, true)],
        &[(BUFFERS, 0, true)],
    ];
    for (case, bad) in bad.iter().enumerate() {
        let mut bench = Bench::new();
        bench.put(QUEUE_RECEIVE, 0, bad);
        for number in 1..4 {
            bench.put(QUEUE_RECEIVE, number, &[(BUFFERS, 2_000, true)]);
        }
        bench.start_with(MERGED);
        bench.send(&pattern(1_500));
        bench.wait_used(QUEUE_RECEIVE, 1);
        assert_eq!(bench.received(0), (0, 0), "{case}");
        bench.send(&pattern(3_000));
        bench.wait_used(QUEUE_RECEIVE, 3);
        assert_eq!(bench.received(2), (4, 1_012), "{case}");
        let counts = bench.net.counters().snapshot();
        assert_eq!((counts.received, counts.received_dropped), (1, 1));
    }
}

#[test]
fn a_frame_of_the_guest_keeps_its_offloads() {
    let mut bench = Bench::new();
    bench.start_with(OFFLOADS);
    let frame = pattern(FRAME_MAX);
    let at = |address| GuestAddress(address);
    bench.memory.write_slice(&SEGMENTS, at(BUFFERS)).unwrap();
    let body = BUFFERS + 0x1000;
    bench.memory.write_slice(&frame, at(body)).unwrap();
    let parts = [
        (BUFFERS, HEADER as u32, false),
        (body, FRAME_MAX as u32, false),
    ];
    bench.put(QUEUE_TRANSMIT, 0, &parts);
    bench.kick(QUEUE_TRANSMIT);
    let (header, sent) = bench.receive_packet();
    assert_eq!(header, SEGMENTS);
    assert!(sent == frame);
}

#[test]
fn a_driver_that_comes_later_gets_what_it_has_accepted() {
    let mut bench = Bench::with_mtu(Some(1_500));
    bench.start_with(MERGED | OFFLOADS);
    bench.restart_with(1 << VIRTIO_NET_F_MTU);
    bench.put(QUEUE_RECEIVE, 0, &[(BUFFERS, 2_000, true)]);
    // What was sent while the other driver had the card: segments, no checksum, too long.
    let partial = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    bench.send_packet(SEGMENTS, &pattern(1_000));
    bench.send_packet(partial, &FRAME);
    bench.send(&pattern(1_519));
    bench.send(&FRAME);
    bench.wait_used(QUEUE_RECEIVE, 1);
    assert_eq!(bench.received(0), (0, 72));
    let counts = bench.net.counters().snapshot();
    assert_eq!((counts.received, counts.received_dropped), (1, 3));
    // And what it sends is held against what it has accepted.
    bench
        .memory
        .write_slice(&SEGMENTS, GuestAddress(BUFFERS))
        .unwrap();
    bench.put(QUEUE_TRANSMIT, 0, &[(BUFFERS, 100, false)]);
    bench.kick(QUEUE_TRANSMIT);
    bench.wait_used(QUEUE_TRANSMIT, 1);
    assert_eq!(bench.net.counters().snapshot().transmitted_dropped, 1);
    bench.restart_with(OFFLOADS);
    bench.put(QUEUE_TRANSMIT, 0, &[(BUFFERS, 100, false)]);
    bench.kick(QUEUE_TRANSMIT);
    assert_eq!(bench.receive_packet().0, SEGMENTS);
}

#[test]
fn the_mtu_is_offered_where_it_is_known() {
    let bench = Bench::new();
    assert_eq!(bench.net.features() & 1 << VIRTIO_NET_F_MTU, 0);
    let bench = Bench::with_mtu(Some(9_000));
    assert_ne!(bench.net.features() & 1 << VIRTIO_NET_F_MTU, 0);
    let mut mtu = [0; 2];
    bench.net.read_config(10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 9_000);
}

#[test]
fn invalid_rings_stop_the_device_until_reset() {
    for (available, head) in [(SIZE + 1, 0), (1, SIZE)] {
        let mut bench = Bench::new();
        bench.start();
        bench.offer(QUEUE_TRANSMIT, 0, head, available);
        bench.kick(QUEUE_TRANSMIT);
        while !bench.interrupt.is_reset_needed() {
            bench.interrupts.recv_timeout(TIMEOUT).unwrap();
        }
        bench.net.reset();
        // A driver that starts over has a working card.
        bench.offer(QUEUE_TRANSMIT, 0, 0, 0);
        bench.start();
        bench
            .memory
            .write_slice(&FRAME, GuestAddress(BUFFERS + HEADER as u64))
            .unwrap();
        bench.put(QUEUE_TRANSMIT, 0, &[(BUFFERS, 72, false)]);
        bench.kick(QUEUE_TRANSMIT);
        assert_eq!(bench.receive(), FRAME);
    }
}

#[test]
fn the_card_starts_and_stops_any_number_of_times() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.start();
        bench.net.reset();
        bench.net.reset();
    }
}

#[test]
fn a_driver_without_both_queues_does_not_start_the_card() {
    let mut bench = Bench::new();
    let activation = Activation {
        memory: bench.memory.clone(),
        queues: Vec::new(),
        interrupt: bench.interrupt.clone(),
        features: 0,
    };
    assert!(matches!(
        bench.net.activate(activation),
        Err(ActivateError::MissingQueue(QUEUE_RECEIVE))
    ));
}

#[test]
fn the_link_is_up() {
    let bench = Bench::new();
    assert_ne!(bench.net.features() & 1 << VIRTIO_NET_F_STATUS, 0);
    let mut status = [0; 2];
    bench.net.read_config(6, &mut status);
    assert_eq!(u16::from_le_bytes(status), VIRTIO_NET_S_LINK_UP as u16);
}

#[test]
fn mac_address_is_stable_per_tap() {
    let bench = Bench::new();
    let mut config = [0; 8];
    bench.net.read_config(0, &mut config);
    assert_eq!(config[..6], [2, 0, 0, 0, 0, 1]);
    assert_eq!(mac_for("tap0"), mac_for("tap0"));
    assert_ne!(mac_for("tap0"), mac_for("tap1"));
    // Locally administered, no group address.
    assert_eq!(mac_for("tap0")[0] & 3, 2);
}
