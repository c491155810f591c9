//! The work on the queues, in the device's thread: passes requests of the driver on to the daemon, and its answers back.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::rings::{RelayedQueue, Unasked};
use super::{DaemonStatus, Kind};
use crate::devices::DeviceInterrupt;
use crate::devices::worker::{Serve, drain};
use crate::tally::Tally;

/// Token of the connection; queue `n` has `2 * n` for the driver's side and `2 * n + 1` for the daemon's.
const CONNECTION: u64 = 1 << 32;

/// The queues of a device that is at work.
pub(super) struct Traffic {
    kind: Kind,
    queues: Vec<RelayedQueue>,
    memory: Arc<GuestMemoryMmap>,
    interrupt: DeviceInterrupt,
    status: Arc<DaemonStatus>,
    tally: Arc<Tally>,
}

/// What the thread serves.
pub(super) struct Queues {
    traffic: Arc<Mutex<Traffic>>,
    socket: Arc<UnixStream>,
    epoll: Epoll,
    tally: Arc<Tally>,
    name: &'static str,
}

impl Traffic {
    pub(super) fn new(
        kind: Kind,
        queues: Vec<RelayedQueue>,
        memory: GuestMemoryMmap,
        interrupt: DeviceInterrupt,
        status: Arc<DaemonStatus>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            kind,
            queues,
            memory: Arc::new(memory),
            interrupt,
            status,
            tally,
        }
    }

    pub(super) fn queues(&mut self) -> &mut [RelayedQueue] {
        &mut self.queues
    }

    /// Whether the daemon answers all that it is asked.
    pub(super) fn is_answered(&self) -> bool {
        (0..self.queues.len()).all(|number| self.kind.is_answered(number))
    }

    /// Passes on what the driver asks, until there is no more or the turn is over.
    fn ask(&mut self, number: usize) -> Result<(), QueueError> {
        if self.status.is_lost() && !self.kind.is_answered(number) {
            return Ok(());
        }
        let queue = &mut self.queues[number];
        let mut is_refused = false;
        let mut turn = queue.driver.queue.size();
        loop {
            queue.driver.queue.disable_notification(&*self.memory)?;
            while let Some(left) = turn.checked_sub(1) {
                let next = queue.driver.queue.iter(self.memory.clone())?.next();
                let Some(chain) = next else { break };
                turn = left;
                let refused = match self.status.is_lost() {
                    false => queue.ask(chain),
                    true => Err(chain),
                };
                if let Err(chain) = refused {
                    if !self.status.is_lost() {
                        self.tally.add(
                            self.kind.name(),
                            "the driver sent a chain that does not end, or twice",
                        );
                    }
                    let head = chain.head_index();
                    let length = self.kind.fail(chain, &self.memory);
                    queue.put(&self.memory, head, length)?;
                    is_refused = true;
                }
            }
            if turn == 0 {
                // There may be more: come back here after the others had a turn.
                let _ = queue.driver.kick.write(1);
                break;
            }
            if !queue.driver.queue.enable_notification(&*self.memory)? {
                break;
            }
        }
        queue.publish();
        match is_refused {
            true => self.signal(number),
            false => Ok(()),
        }
    }

    /// Passes on what the daemon answers. What it has answered at once, the driver sees at once: one frame may be in several
    /// buffers.
    fn answer(&mut self, number: usize) -> Result<(), QueueError> {
        let queue = &mut self.queues[number];
        loop {
            match queue.next_answer() {
                Ok(Some((head, length))) => queue.put(&self.memory, head, length)?,
                Ok(None) => return self.signal(number),
                Err(Unasked) => {
                    self.status.broken("it answered what it was not asked");
                    return self.give_up();
                }
            }
        }
    }

    /// Answers with errors what a lost daemon has not answered.
    fn give_up(&mut self) -> Result<(), QueueError> {
        for number in 0..self.queues.len() {
            let queue = &mut self.queues[number];
            if self.kind.is_answered(number) {
                for chain in queue.give_up() {
                    let head = chain.head_index();
                    let length = self.kind.fail(chain, &self.memory);
                    queue.put(&self.memory, head, length)?;
                }
            }
            self.signal(number)?;
        }
        Ok(())
    }

    /// The daemon has closed the connection: what it has answered counts, the rest fails.
    fn disconnected(&mut self) -> Result<(), QueueError> {
        for number in 0..self.queues.len() {
            self.answer(number)?;
        }
        self.status.disconnected();
        self.give_up()
    }

    /// Shows the driver what is answered.
    fn signal(&mut self, number: usize) -> Result<(), QueueError> {
        let RelayedQueue { driver, used, .. } = &mut self.queues[number];
        used.show(&mut driver.queue, &self.memory)?;
        if used.needs_interrupt(&driver.queue, &self.memory)? {
            self.interrupt.queue_used();
        }
        Ok(())
    }
}

impl Queues {
    pub(super) fn new(traffic: Arc<Mutex<Traffic>>, socket: Arc<UnixStream>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |fd, token| {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, fd, event)
        };
        let locked = super::lock(&traffic);
        for (number, queue) in (0..).zip(&locked.queues) {
            watch(queue.driver.kick.as_raw_fd(), 2 * number)?;
            watch(queue.answer.as_raw_fd(), 2 * number + 1)?;
        }
        // Nothing is asked there while the device is at work, so it becomes readable only at the end.
        watch(socket.as_raw_fd(), CONNECTION)?;
        let (tally, name) = (locked.tally.clone(), locked.kind.name());
        drop(locked);
        Ok(Self {
            traffic,
            socket,
            epoll,
            tally,
            name,
        })
    }

    pub(super) fn traffic(&self) -> MutexGuard<'_, Traffic> {
        super::lock(&self.traffic)
    }
}

impl Serve for Queues {
    fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    fn start(&mut self) -> Result<(), QueueError> {
        let mut traffic = self.traffic();
        (0..traffic.queues.len()).try_for_each(|number| traffic.ask(number))
    }

    fn ready(&mut self, token: u64) -> Result<(), QueueError> {
        if token == CONNECTION {
            let fd = self.socket.as_raw_fd();
            let unused = EpollEvent::default();
            if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, unused) {
                log::debug!("{}: the connection is still watched: {error}", self.name);
            }
            return self.traffic().disconnected();
        }
        let mut traffic = self.traffic();
        // As many as there are queues.
        let number = (token / 2) as usize;
        let queue = &traffic.queues[number];
        match token % 2 {
            0 => {
                drain(&queue.driver.kick);
                traffic.ask(number)
            }
            _ => {
                drain(&queue.answer);
                traffic.answer(number)
            }
        }
    }

    fn count_broken_rings(&self) -> bool {
        self.tally
            .add(self.name, "the driver broke the rings of a queue")
    }
}
