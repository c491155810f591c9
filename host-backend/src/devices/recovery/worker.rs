//! The thread that serves the queues.

use std::io;
use std::os::fd::AsRawFd;

use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::handle::RecoveryHandle;
use super::{NAME, control, events};
use crate::devices::{ActiveQueue, DeviceInterrupt};

/// Tokens of the event loop.
const CONTROL: u64 = 0;
const BUFFERS: u64 = 1;
const PENDING: u64 = 2;
const STOP: u64 = 3;

pub(super) struct Worker {
    handle: RecoveryHandle,
    control: ActiveQueue,
    event: Option<ActiveQueue>,
    memory: GuestMemoryMmap,
    interrupt: DeviceInterrupt,
    /// Readable when an event is pending.
    pending: EventFd,
    /// Kept open because it is watched.
    _stop: EventFd,
    epoll: Epoll,
}

impl Worker {
    pub(super) fn new(
        handle: RecoveryHandle,
        control: ActiveQueue,
        event: Option<ActiveQueue>,
        memory: GuestMemoryMmap,
        interrupt: DeviceInterrupt,
        stop: EventFd,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let pending = handle.event_kick()?;
        let buffers = event
            .as_ref()
            .map(|queue| (queue.kick.as_raw_fd(), BUFFERS));
        for (fd, token) in [
            (control.kick.as_raw_fd(), CONTROL),
            (pending.as_raw_fd(), PENDING),
            (stop.as_raw_fd(), STOP),
        ]
        .into_iter()
        .chain(buffers)
        {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self {
            handle,
            control,
            event,
            memory,
            interrupt,
            pending,
            _stop: stop,
            epoll,
        })
    }

    /// Works until the stop event, or until the guest's rings make no sense.
    pub(super) fn run(mut self) {
        // The driver may have filled the queues before it started the device.
        let mut result = self.serve_control().and_then(|()| self.serve_events());
        let mut ready = [EpollEvent::default(); 4];
        while result.is_ok() {
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("{NAME}: the device stops: {error}");
                    break;
                }
            };
            if ready[..count].iter().any(|event| event.data() == STOP) {
                return;
            }
            for event in &ready[..count] {
                result = result.and_then(|()| match event.data() {
                    CONTROL => {
                        drain(&self.control.kick);
                        self.serve_control()
                    }
                    BUFFERS => {
                        if let Some(queue) = &self.event {
                            drain(&queue.kick);
                        }
                        self.serve_events()
                    }
                    _ => {
                        drain(&self.pending);
                        self.serve_events()
                    }
                });
            }
        }
        if let Err(error) = result
            && self.handle.count("the driver broke the rings of a queue")
        {
            log::warn!("{NAME}: {error}");
        }
        self.interrupt.needs_reset();
    }

    fn serve_control(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.control.queue;
        if control::process(queue, &self.memory, &self.handle)? {
            // There may be more: come back after a stop had its turn. The counter is full only if
            // a kick is pending anyway.
            let _ = self.control.kick.write(1);
        }
        if queue.needs_notification(&self.memory)? {
            self.interrupt.queue_used();
        }
        Ok(())
    }

    fn serve_events(&mut self) -> Result<(), QueueError> {
        let Some(active) = &mut self.event else {
            self.handle.drop_events();
            return Ok(());
        };
        if events::process(&mut active.queue, &self.memory, &self.handle)? {
            // As above.
            let _ = self.pending.write(1);
        }
        if active.queue.needs_notification(&self.memory)? {
            self.interrupt.queue_used();
        }
        Ok(())
    }
}

fn drain(event: &EventFd) {
    // An error means that it was drained before.
    let _ = event.read();
}
