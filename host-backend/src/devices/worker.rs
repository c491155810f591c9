//! The thread of a device's queues: its event loop, and its life from activation to reset.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use virtio_queue::Error as QueueError;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::DeviceInterrupt;
use crate::sandbox::{self, Role};
use crate::vitals::Pulse;
use crate::vmm::poison;

/// Token of the event that ends the thread; a device's own are below [`ASKED`].
const STOP: u64 = u64::MAX;

/// Token of the event that asks whether the thread is alive.
const ASKED: u64 = u64::MAX - 1;

/// Maximum number of events that are taken at a time.
const EVENTS: usize = 4;

/// What a device does in its thread.
pub(super) trait Serve: Send + 'static {
    /// What is watched: each event comes to [`Self::ready`] with its token, which is below `u64::MAX - 1`.
    fn epoll(&self) -> &Epoll;

    /// Serves what the driver had put into the queues before it started the device.
    ///
    /// # Errors
    ///
    /// Fails when the rings are invalid; the device then stops until its next reset.
    fn start(&mut self) -> Result<(), QueueError>;

    /// Serves one event.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    fn ready(&mut self, token: u64) -> Result<(), QueueError>;

    /// Counts broken rings of the driver; true if they are the first.
    fn count_broken_rings(&self) -> bool;
}

/// The running thread; it ends when this is dropped, and nothing of the device touches the guest's
/// memory then.
#[derive(Debug)]
pub(super) struct Worker {
    name: &'static str,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of the device `name`, which works on `memory` and interrupts by `interrupt`.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread or descriptor left.
    pub(super) fn start(
        name: &'static str,
        memory: GuestMemoryMmap,
        interrupt: DeviceInterrupt,
        serve: impl Serve,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let watched = EpollEvent::new(EventSet::IN, STOP);
        serve
            .epoll()
            .ctl(ControlOperation::Add, stop.as_raw_fd(), watched)?;
        let asked = EventFd::new(EFD_NONBLOCK)?;
        let watched = EpollEvent::new(EventSet::IN, ASKED);
        serve
            .epoll()
            .ctl(ControlOperation::Add, asked.as_raw_fd(), watched)?;
        let thread_name = format!("{name}-queues");
        let thread = thread::Builder::new()
            .name(thread_name.clone())
            .spawn(move || {
                sandbox::confine(Role::Device);
                let done = poison::guarded(&memory, || {
                    run(name, serve, &interrupt, &Heart::new(thread_name, asked));
                });
                if let Err(error) = done {
                    log::error!("{name}: the device stops: SIGBUS cannot be handled: {error}");
                    interrupt.needs_reset();
                }
            })?;
        Ok(Self {
            name,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let stopped = self.stop.write(1);
        debug_assert!(stopped.is_ok(), "the event counter is far from full");
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // The panic's message is on standard error already.
            log::error!("{}: the worker thread panicked", self.name);
        }
    }
}

/// How the thread answers when it is asked whether it is alive.
struct Heart {
    pulse: Pulse,
    asked: Arc<EventFd>,
}

impl Heart {
    fn new(thread: String, asked: EventFd) -> Self {
        let asked = Arc::new(asked);
        let event = asked.clone();
        // An event that cannot be counted is pending.
        let pulse = Pulse::new(thread, move || drop(event.write(1)));
        Self { pulse, asked }
    }
}

/// Works until the stop event, until the guest's rings are invalid, or until its memory is broken.
fn run(name: &str, mut serve: impl Serve, interrupt: &DeviceInterrupt, heart: &Heart) {
    let mut result = serve.start();
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        heart.pulse.beat();
        if poison::take().is_some() {
            // Whatever else was wrong may have come of the zeros that were read there.
            log::error!("{name}: the device stops: the hardware reports the guest's RAM as broken");
            return interrupt.machine_check();
        }
        if let Err(error) = result {
            if serve.count_broken_rings() {
                log::warn!("{name}: {error}");
            }
            return interrupt.needs_reset();
        }
        let count = match serve.epoll().wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("{name}: the device stops: {error}");
                return interrupt.needs_reset();
            }
        };
        if events[..count].iter().any(|event| event.data() == STOP) {
            return;
        }
        for event in &events[..count] {
            if event.data() == ASKED {
                drain(&heart.asked);
                continue;
            }
            result = result.and_then(|()| serve.ready(event.data()));
        }
    }
}

/// Takes an event's count back to zero. It was zero already if that fails.
pub(super) fn drain(event: &EventFd) {
    let _ = event.read();
}
