//! The work on the queues, in the device's thread: moves frames between the tap interface and the queues.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{FRAME_MAX, HEADER, NAME, NetCounters};
use crate::devices::worker::{Serve, drain};
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::vmm::poison;

/// Maximum number of frames in one direction before the other direction, and a stop, get their turn.
const TURN: usize = 128;

/// Least Ethernet frame: two addresses and a type.
const FRAME_MIN: usize = 14;

/// The header in front of every frame to the guest: no offload, one buffer (Virtio 1.2, 5.1.6.4:
/// `num_buffers` is 1 without VIRTIO_NET_F_MRG_RXBUF).
const RECEIVE_HEADER: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Tokens of the event loop.
const TAP: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;

pub(super) struct Queues {
    tap: File,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: DeviceInterrupt,
    counters: Arc<NetCounters>,
    epoll: Epoll,
    /// A frame from the tap interface with its header, `incoming_length` bytes of it in use.
    incoming: Vec<u8>,
    incoming_length: usize,
    /// Whether the tap interface is watched. It is not while a frame waits for a buffer of the
    /// guest, since it would stay readable all the time.
    watching_tap: bool,
    outgoing: Vec<u8>,
}

impl Queues {
    pub(super) fn new(
        tap: File,
        receive: ActiveQueue,
        transmit: ActiveQueue,
        memory: GuestMemoryMmap,
        interrupt: DeviceInterrupt,
        counters: Arc<NetCounters>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (tap.as_raw_fd(), TAP),
            (receive.kick.as_raw_fd(), RECEIVE),
            (transmit.kick.as_raw_fd(), TRANSMIT),
        ] {
            epoll.ctl(ControlOperation::Add, fd, readable(token))?;
        }
        Ok(Self {
            tap,
            receive,
            transmit,
            memory,
            interrupt,
            counters,
            epoll,
            incoming: vec![0; HEADER + FRAME_MAX],
            incoming_length: 0,
            watching_tap: true,
            outgoing: vec![0; HEADER + FRAME_MAX],
        })
    }
}

impl Serve for Queues {
    fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    fn start(&mut self) -> Result<(), QueueError> {
        self.transmit()
    }

    fn ready(&mut self, token: u64) -> Result<(), QueueError> {
        match token {
            TAP => self.receive(),
            RECEIVE => {
                drain(&self.receive.kick);
                self.receive()
            }
            _ => {
                drain(&self.transmit.kick);
                self.transmit()
            }
        }
    }

    fn count_broken_rings(&self) -> bool {
        self.counters
            .tally
            .add(NAME, "the driver broke the rings of a queue")
    }
}

impl Queues {
    /// Gives frames of the tap interface to the guest, until there are no more, there are no
    /// buffers, or the turn is over; then the tap interface is still readable.
    fn receive(&mut self) -> Result<(), QueueError> {
        self.receive_up_to(TURN)
    }

    fn receive_up_to(&mut self, frames: usize) -> Result<(), QueueError> {
        for _ in 0..frames {
            if self.incoming_length == 0 && !self.read_tap() {
                break;
            }
            let Some(chain) = pop(&mut self.receive, &self.memory)? else {
                // A buffer that came in this moment is seen here; one that comes later kicks.
                if self.receive.queue.enable_notification(&self.memory)? {
                    continue;
                }
                self.watch_tap(false);
                return signal(&mut self.receive, &self.memory, &self.interrupt);
            };
            let head = chain.head_index();
            let frame = &mut self.incoming[..self.incoming_length];
            frame[..HEADER].copy_from_slice(&RECEIVE_HEADER);
            let written = write_chain(chain, &self.memory, frame);
            self.incoming_length = 0;
            match written {
                Some(_) => increment(&self.counters.received),
                None => {
                    increment(&self.counters.received_dropped);
                    self.counters.tally.add(
                        NAME,
                        "the driver's buffer is not in RAM or too small for a frame",
                    );
                }
            }
            let queue = &mut self.receive.queue;
            queue.add_used(&self.memory, head, written.unwrap_or(0))?;
        }
        if self.incoming_length != 0 {
            // The turn ended with a frame in hand. The interface may stay silent and the driver has
            // no reason to kick, so come back by ourselves.
            let _ = self.receive.kick.write(1);
        }
        if !self.watching_tap {
            self.receive.queue.disable_notification(&self.memory)?;
            self.watch_tap(true);
        }
        signal(&mut self.receive, &self.memory, &self.interrupt)
    }

    /// Fetches the next frame; false if there is none.
    fn read_tap(&mut self) -> bool {
        match self.tap.read(&mut self.incoming) {
            Ok(length) if length >= HEADER + FRAME_MIN => {
                self.incoming_length = length;
                true
            }
            // The tap interface gives whole frames; anything shorter is the end of a stand-in.
            Ok(_) => false,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::debug!("{NAME}: reading the tap interface: {error}");
                }
                false
            }
        }
    }

    /// Starts or stops watching the tap interface.
    fn watch_tap(&mut self, watch: bool) {
        let event = if watch {
            readable(TAP)
        } else {
            EpollEvent::new(EventSet::empty(), TAP)
        };
        let fd: RawFd = self.tap.as_raw_fd();
        match self.epoll.ctl(ControlOperation::Modify, fd, event) {
            Ok(()) => self.watching_tap = watch,
            // Nothing is lost, the thread only spins until there are buffers.
            Err(error) => log::debug!("{NAME}: cannot change what is watched: {error}"),
        }
    }

    /// Gives frames of the guest to the tap interface.
    fn transmit(&mut self) -> Result<(), QueueError> {
        self.transmit.queue.disable_notification(&self.memory)?;
        for _ in 0..TURN {
            let Some(chain) = pop(&mut self.transmit, &self.memory)? else {
                if self.transmit.queue.enable_notification(&self.memory)? {
                    continue;
                }
                return signal(&mut self.transmit, &self.memory, &self.interrupt);
            };
            let head = chain.head_index();
            match read_chain(chain, &self.memory, &mut self.outgoing) {
                Ok(length) => self.write_tap(length),
                Err(what) => {
                    increment(&self.counters.transmitted_dropped);
                    self.counters.tally.add(NAME, what);
                }
            }
            self.transmit.queue.add_used(&self.memory, head, 0)?;
        }
        // There may be more: come back here after the others had a turn. The counter is full
        // only if a kick is pending anyway.
        let _ = self.transmit.kick.write(1);
        signal(&mut self.transmit, &self.memory, &self.interrupt)
    }

    fn write_tap(&mut self, length: usize) {
        match self.tap.write(&self.outgoing[..length]) {
            Ok(written) if written == length => increment(&self.counters.transmitted),
            // The interface is down or its queue is full: frames get lost, as on any wire.
            result => {
                increment(&self.counters.transmitted_dropped);
                log::trace!("{NAME}: a frame is lost: {result:?}");
            }
        }
    }
}

fn readable(token: u64) -> EpollEvent {
    EpollEvent::new(EventSet::IN, token)
}

fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// The next chain; an error if the available ring is invalid.
fn pop<'a>(
    active: &mut ActiveQueue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, QueueError> {
    Ok(active.queue.iter(memory)?.next())
}

fn signal(
    active: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &DeviceInterrupt,
) -> Result<(), QueueError> {
    if active.queue.needs_notification(memory)? {
        interrupt.queue_used();
    }
    Ok(())
}

/// Copies `frame` into the writable part of `chain` and returns its length; `None` if it does not
/// fit or the chain is malformed.
fn write_chain(chain: Chain<'_>, memory: &GuestMemoryMmap, frame: &[u8]) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    if writer.available_bytes() < frame.len() {
        return None;
    }
    writer.write_all(frame).ok()?;
    u32::try_from(frame.len()).ok()
}

/// Copies the frame in `chain`, with an empty virtio-net header in front, into `buffer` and
/// returns the length of both; or says what is wrong with it.
fn read_chain(
    chain: Chain<'_>,
    memory: &GuestMemoryMmap,
    buffer: &mut [u8],
) -> Result<usize, &'static str> {
    let mut reader = chain
        .reader(memory)
        .map_err(|_| "the driver sent a chain that does not lie in RAM")?;
    let length = reader.available_bytes();
    if length < HEADER + FRAME_MIN {
        return Err("the driver sent a frame that is too short");
    }
    let frame = buffer
        .get_mut(..length)
        .ok_or("the driver sent a frame that is too long")?;
    reader
        .read_exact(frame)
        .map_err(|_| "the driver sent a chain that does not lie in RAM")?;
    if poison::is_noted() {
        return Err("the memory of a frame is broken");
    }
    // Flags and kind of segmentation: offloads, which were not offered. The other fields mean
    // nothing without them.
    if frame[..2] != [0, 0] {
        return Err("the driver asked for an offload that was not offered");
    }
    frame[..HEADER].fill(0);
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::net::tests::Bench;

    #[test]
    fn a_frame_in_hand_at_the_end_of_a_turn_gets_another_turn() {
        let mut bench = Bench::new();
        let mut queues = bench.queues();
        bench.put_receive_buffer();
        // As if the buffer had come in the moment in which the turn ended: neither the tap interface
        // nor the driver will say anything more.
        queues.incoming_length = HEADER + FRAME_MIN;
        queues.receive_up_to(0).unwrap();
        assert_eq!(queues.receive.kick.read().unwrap(), 1);
        queues.receive().unwrap();
        assert_eq!(queues.incoming_length, 0);
    }
}
