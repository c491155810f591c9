//! The work on the queues, in the device's thread: moves frames between the tap interface and the queues.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT, Writer};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::offload::{Agreed, set_buffers};
use super::{FRAME_MAX, HEADER, NAME, NetCounters};
use crate::devices::used::UsedRing;
use crate::devices::worker::{Serve, drain};
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::vmm::poison;

/// Maximum number of frames in one direction before the other direction, and a stop, get their turn.
const TURN: usize = 128;

/// Least Ethernet frame: two addresses and a type.
const FRAME_MIN: usize = 14;

/// Tokens of the event loop.
const TAP: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;

pub(super) struct Queues {
    tap: File,
    agreed: Agreed,
    receive: Ring,
    transmit: Ring,
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
    /// The buffers that the frame to the guest takes, by their first descriptors.
    heads: Vec<u16>,
}

/// A queue with its used ring.
struct Ring {
    active: ActiveQueue,
    used: UsedRing,
}

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    /// The guest has it, or it is lost.
    Done,
    /// There are not enough buffers.
    Waits,
    /// There were not enough buffers, and the driver has added some in this moment.
    Again,
}

/// The buffers for a frame.
enum Gathered<'a> {
    Enough(Vec<Writer<'a>>),
    TooFew,
    /// One is not in RAM, or they are too small.
    Bad,
}

impl Queues {
    pub(super) fn new(
        tap: File,
        agreed: Agreed,
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
        let ring = |active: ActiveQueue| Ring {
            used: UsedRing::new(&active.queue),
            active,
        };
        Ok(Self {
            tap,
            agreed,
            receive: ring(receive),
            transmit: ring(transmit),
            memory,
            interrupt,
            counters,
            epoll,
            incoming: vec![0; HEADER + FRAME_MAX],
            incoming_length: 0,
            watching_tap: true,
            outgoing: vec![0; HEADER + FRAME_MAX],
            heads: Vec::new(),
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
                drain(&self.receive.active.kick);
                self.receive()
            }
            _ => {
                drain(&self.transmit.active.kick);
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
            match self.place()? {
                Placed::Done => self.incoming_length = 0,
                Placed::Again => {}
                Placed::Waits => {
                    self.watch_tap(false);
                    return self.receive.signal(&self.memory, &self.interrupt);
                }
            }
        }
        if self.incoming_length != 0 {
            // The turn ended with a frame in hand. The interface may stay silent and the driver has
            // no reason to kick, so come back by ourselves.
            let _ = self.receive.active.kick.write(1);
        }
        if !self.watching_tap {
            let queue = &mut self.receive.active.queue;
            queue.disable_notification(&self.memory)?;
            self.watch_tap(true);
        }
        self.receive.signal(&self.memory, &self.interrupt)
    }

    /// Gives the frame in hand to the guest.
    fn place(&mut self) -> Result<Placed, QueueError> {
        let Self {
            receive,
            memory,
            counters,
            heads,
            ..
        } = self;
        let packet = &mut self.incoming[..self.incoming_length];
        let start = receive.active.queue.next_avail();
        let most = match self.agreed.merges_buffers() {
            true => receive.active.queue.size(),
            false => 1,
        };
        let mut lengths = Vec::new();
        match receive.gather(memory, packet.len(), most, heads)? {
            Gathered::Enough(writers) => {
                // As many as descriptors at most.
                set_buffers(packet, writers.len() as u16);
                lengths = scatter(packet, writers).unwrap_or_default();
            }
            Gathered::TooFew => {
                let queue = &mut receive.active.queue;
                // A buffer that came in this moment is seen here; one that comes later kicks.
                let is_new = queue.enable_notification(memory)?;
                // Nothing was taken.
                queue.set_next_avail(start);
                return Ok(if is_new { Placed::Again } else { Placed::Waits });
            }
            Gathered::Bad => {}
        }
        if lengths.is_empty() {
            increment(&counters.received_dropped);
            counters.tally.add(
                NAME,
                "the driver's buffer is not in RAM or too small for a frame",
            );
        } else {
            increment(&counters.received);
        }
        let mut lengths = lengths.into_iter();
        for &head in heads.iter() {
            receive.put(memory, head, lengths.next().unwrap_or(0))?;
        }
        receive.show(memory)?;
        Ok(Placed::Done)
    }

    /// Fetches the next frame that the guest can take; false if there is none.
    fn read_tap(&mut self) -> bool {
        // Those that it cannot take are few: what was sent before driver and tap interface have agreed.
        for _ in 0..TURN {
            match self.tap.read(&mut self.incoming) {
                Ok(length) if length >= HEADER + FRAME_MIN => {
                    if self.agreed.check_incoming(&mut self.incoming[..length]) {
                        self.incoming_length = length;
                        return true;
                    }
                    increment(&self.counters.received_dropped);
                }
                // The tap interface gives whole frames; anything shorter is the end of a stand-in.
                Ok(_) => break,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        log::debug!("{NAME}: reading the tap interface: {error}");
                    }
                    break;
                }
            }
        }
        false
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
        let queue = &mut self.transmit.active.queue;
        queue.disable_notification(&self.memory)?;
        for _ in 0..TURN {
            let Self {
                transmit, memory, ..
            } = self;
            let Some(chain) = transmit.pop(memory)? else {
                if transmit.active.queue.enable_notification(memory)? {
                    continue;
                }
                return transmit.signal(memory, &self.interrupt);
            };
            let head = chain.head_index();
            let length = read_chain(chain, memory, &mut self.outgoing).and_then(|length| {
                self.agreed.check_outgoing(&mut self.outgoing[..length])?;
                Ok(length)
            });
            match length {
                Ok(length) => self.write_tap(length),
                Err(what) => {
                    increment(&self.counters.transmitted_dropped);
                    self.counters.tally.add(NAME, what);
                }
            }
            self.transmit.put(&self.memory, head, 0)?;
            self.transmit.show(&self.memory)?;
        }
        // There may be more: come back here after the others had a turn. The counter is full
        // only if a kick is pending anyway.
        let _ = self.transmit.active.kick.write(1);
        self.transmit.signal(&self.memory, &self.interrupt)
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

impl Ring {
    /// The next chain; an error if the available ring is invalid.
    fn pop<'a>(&mut self, memory: &'a GuestMemoryMmap) -> Result<Option<Chain<'a>>, QueueError> {
        Ok(self.active.queue.iter(memory)?.next())
    }

    /// Takes buffers for a packet of this length, at most so many; `heads` becomes what was taken.
    fn gather<'a>(
        &mut self,
        memory: &'a GuestMemoryMmap,
        length: usize,
        most: u16,
        heads: &mut Vec<u16>,
    ) -> Result<Gathered<'a>, QueueError> {
        heads.clear();
        let mut writers: Vec<Writer<'a>> = Vec::new();
        let mut room = 0;
        while room < length {
            // If even all buffers that there can be are too small, nothing is to be waited for.
            if heads.len() == usize::from(most) {
                return Ok(Gathered::Bad);
            }
            let Some(chain) = self.pop(memory)? else {
                return Ok(Gathered::TooFew);
            };
            heads.push(chain.head_index());
            let Ok(writer) = chain.writer(memory) else {
                return Ok(Gathered::Bad);
            };
            // The header is in one buffer (Virtio 1.2, 5.1.6.3.1).
            let least = if writers.is_empty() { HEADER } else { 1 };
            if writer.available_bytes() < least {
                return Ok(Gathered::Bad);
            }
            room += writer.available_bytes();
            writers.push(writer);
        }
        Ok(Gathered::Enough(writers))
    }

    fn put(&mut self, memory: &GuestMemoryMmap, head: u16, length: u32) -> Result<(), QueueError> {
        self.used.put(&self.active.queue, memory, head, length)
    }

    fn show(&mut self, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        self.used.show(&mut self.active.queue, memory)
    }

    fn signal(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &DeviceInterrupt,
    ) -> Result<(), QueueError> {
        if self.used.needs_interrupt(&self.active.queue, memory)? {
            interrupt.queue_used();
        }
        Ok(())
    }
}

/// Copies a packet into buffers that have room for it; the number of bytes in each, or `None` if one cannot be written.
fn scatter(packet: &[u8], writers: Vec<Writer<'_>>) -> Option<Vec<u32>> {
    let mut rest = packet;
    writers
        .into_iter()
        .map(|mut writer| {
            let (part, others) = rest.split_at(rest.len().min(writer.available_bytes()));
            rest = others;
            writer.write_all(part).ok()?;
            u32::try_from(part.len()).ok()
        })
        .collect()
}

/// Copies the frame in `chain`, with its virtio-net header in front, into `buffer` and returns the length of both; or
/// says what is wrong with it.
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
        assert_eq!(queues.receive.active.kick.read().unwrap(), 1);
        queues.receive().unwrap();
        assert_eq!(queues.incoming_length, 0);
    }
}
