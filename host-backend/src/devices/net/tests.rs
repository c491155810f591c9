//! The network card between a driver's queues in memory and a socket in the tap's place.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use std::io::{self, Read, Write};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
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
        let (tap, wire) = wire();
        let (sender, interrupts) = mpsc::channel();
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap(),
            net: Net::new(tap, [2, 0, 0, 0, 0, 1]),
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
        let (tap, wire) = wire();
        self.wire = wire;
        let active = |index: u16| ActiveQueue {
            index,
            queue: self.queue(index),
            kick: self.kicks[usize::from(index)].try_clone().unwrap(),
        };
        Queues::new(
            tap,
            active(QUEUE_RECEIVE),
            active(QUEUE_TRANSMIT),
            self.memory.clone(),
            self.interrupt.clone(),
            self.net.counters(),
        )
        .unwrap()
    }

    /// Puts a buffer for a frame into the receive queue.
    pub(super) fn put_receive_buffer(&self) {
        self.put(QUEUE_RECEIVE, 0, &[(BUFFERS, 2048, true)]);
    }

    fn start(&mut self) {
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
                features: self.net.features(),
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
        let packet = [&[0xee; HEADER], frame].concat();
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
        let mut packet = [0; 4096];
        let length = self.wire.read(&mut packet).unwrap();
        assert_eq!(packet[..HEADER], [0; HEADER]);
        packet[HEADER..length].to_vec()
    }
}

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
fn mac_address_is_stable_per_tap() {
    let bench = Bench::new();
    let mut config = [0; 8];
    bench.net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(mac_for("tap0"), mac_for("tap0"));
    assert_ne!(mac_for("tap0"), mac_for("tap1"));
    // Locally administered, no group address.
    assert_eq!(mac_for("tap0")[0] & 3, 2);
}
