//! The work on the queues, in the device's thread.

use std::io;
use std::os::fd::AsRawFd;

use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{control, events};
use crate::devices::worker::{Serve, drain};
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::engine_handle::EngineHandle;

/// Tokens of the event loop.
const CONTROL: u64 = 0;
const BUFFERS: u64 = 1;
const PENDING: u64 = 2;

pub(super) struct Queues {
    handle: EngineHandle,
    control: ActiveQueue,
    event: Option<ActiveQueue>,
    memory: GuestMemoryMmap,
    /// For the message that is handled.
    message: Vec<u8>,
    interrupt: DeviceInterrupt,
    /// Readable when an event is pending.
    pending: EventFd,
    epoll: Epoll,
}

impl Queues {
    pub(super) fn new(
        handle: EngineHandle,
        control: ActiveQueue,
        event: Option<ActiveQueue>,
        memory: GuestMemoryMmap,
        interrupt: DeviceInterrupt,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let pending = handle.event_kick()?;
        let buffers = event
            .as_ref()
            .map(|queue| (queue.kick.as_raw_fd(), BUFFERS));
        for (fd, token) in [
            (control.kick.as_raw_fd(), CONTROL),
            (pending.as_raw_fd(), PENDING),
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
            message: Vec::new(),
            interrupt,
            pending,
            epoll,
        })
    }
}

impl Serve for Queues {
    fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    fn start(&mut self) -> Result<(), QueueError> {
        self.serve_control()?;
        self.serve_events()
    }

    fn ready(&mut self, token: u64) -> Result<(), QueueError> {
        match token {
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
        }
    }

    fn count_broken_rings(&self) -> bool {
        self.handle.count("the driver broke the rings of a queue")
    }
}

impl Queues {
    fn serve_control(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.control.queue;
        if control::process(queue, &self.memory, &self.handle, &mut self.message)? {
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
