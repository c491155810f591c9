//! The engine as everybody in the VMM reaches it: the queues' thread, the cleanser, the virtual
//! CPUs' threads and the control socket.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmsrs_protocol::NONE;
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::event::{EVENT_FRAMES_FREE, Event};

use super::NAME;
use super::cleanser::BATCH;
use super::events::Pending;
use crate::devices::Tally;
use crate::engine::{
    Count, Engine, IncidentDetail, IncidentSummary, Reply, SealedWrite, Status, handle_message,
};
use crate::vmm::fault::{Violation, ViolationSink, WriteProtection};
use crate::window::{MprotectProtection, Window};

/// A way to the recovery engine. Clones are the same engine.
#[derive(Clone)]
pub struct RecoveryHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// Guards the engine and the protection of the window, which change together.
    core: Mutex<Core>,
    /// Signalled when frames are retired or the cleanser has to end.
    laundry: Condvar,
    window: Arc<Window>,
    /// Guards the events that wait for the driver's buffers. Never taken before `core`.
    pending: Mutex<Pending>,
    /// Readable when an event is pending.
    kick: EventFd,
    tally: Tally,
}

struct Core {
    engine: Engine,
    protection: MprotectProtection,
    /// The cleanser has to end.
    stopping: bool,
}

impl RecoveryHandle {
    pub(super) fn new(
        engine: Engine,
        protection: MprotectProtection,
        window: Arc<Window>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                core: Mutex::new(Core {
                    engine,
                    protection,
                    stopping: false,
                }),
                laundry: Condvar::new(),
                window,
                pending: Mutex::default(),
                kick: EventFd::new(EFD_NONBLOCK)?,
                tally: Tally::default(),
            }),
        })
    }

    /// The engine's state, with what the driver was refused.
    pub fn status(&self) -> Status {
        let mut status = self.core().engine.status();
        status.refusals = self
            .shared
            .tally
            .counts()
            .into_iter()
            .map(|(what, count)| Count {
                what: what.to_owned(),
                count,
            })
            .collect();
        status
    }

    /// All incidents that are kept, oldest first.
    pub fn incidents(&self) -> Vec<IncidentSummary> {
        self.core().engine.incidents()
    }

    /// Everything known about an incident; `None` when it is unknown or no longer kept.
    pub fn incident(&self, number: u64) -> Option<IncidentDetail> {
        self.core().engine.incident(number)
    }

    /// Whether the guest may not write to a frame.
    pub fn is_protected(&self, frame: u32) -> bool {
        self.core().engine.is_protected(frame)
    }

    /// Keeps a write that the second-level page table stopped, tells the driver, and gives the
    /// number of the incident.
    pub fn sealed_write(&self, write: SealedWrite) -> u64 {
        let event = self.core().engine.sealed_write(now(), write);
        self.tell(event);
        event.incident
    }

    /// Says that the guest's kernel has gone, and how (a sentence without a full stop), after the
    /// device was reset: what the reset dropped becomes an incident.
    pub fn guest_down(&self, reason: &str) {
        self.core().engine.guest_down(now(), reason);
    }

    /// Begins a driver's use of the device.
    pub(super) fn driver_started(&self) {
        self.core().engine.driver_started();
    }

    /// What the driver reads in the configuration space.
    pub(super) fn device_config(&self) -> DeviceConfig {
        self.core().engine.device_config()
    }

    /// Carries out one message of the driver.
    pub(super) fn message(&self, message: &[u8], room: usize) -> Reply {
        let mut core = self.core();
        let Core {
            engine, protection, ..
        } = &mut *core;
        let reply = handle_message(engine, protection, now(), message, room);
        self.wake_cleanser(core);
        if let Some(refusal) = reply.refusal {
            self.count(refusal.reason());
        }
        reply
    }

    /// Ends a boot of the guest.
    pub(super) fn reset(&self) {
        let mut core = self.core();
        let Core {
            engine, protection, ..
        } = &mut *core;
        engine.reset(protection);
        self.wake_cleanser(core);
        self.drop_events();
    }

    /// Counts something that the driver did wrong; true if it is the first of its kind.
    pub(super) fn count(&self, what: &'static str) -> bool {
        self.shared.tally.add(NAME, what)
    }

    /// Waits until frames are retired and wipes a batch of them; false when the cleanser has to
    /// end.
    pub(super) fn cleanse_when_needed(&self) -> bool {
        let mut core = self
            .shared
            .laundry
            .wait_while(self.core(), |core| {
                !core.stopping && !core.engine.has_laundry()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if core.stopping {
            return false;
        }
        let laundry = core.engine.take_laundry(BATCH);
        drop(core);
        for &run in laundry.runs() {
            if let Err(error) = self.shared.window.wipe(run) {
                // The engine knows no frames outside the window: end rather than give out frames
                // with old content.
                log::error!("{NAME}: the cleanser stops: {error}");
                return false;
            }
        }
        if self.core().engine.cleansed(laundry) {
            self.tell(Event {
                kind: EVENT_FRAMES_FREE,
                frame: NONE,
                vcpu: NONE,
                ..Event::default()
            });
        }
        true
    }

    /// Makes the cleanser end after the batch it is at.
    pub(super) fn stop_cleansing(&self) {
        self.core().stopping = true;
        self.shared.laundry.notify_all();
    }

    pub(super) fn has_events(&self) -> bool {
        !self.pending().is_empty()
    }

    pub(super) fn pop_event(&self) -> Option<Event> {
        self.pending().pop()
    }

    pub(super) fn drop_events(&self) {
        self.pending().clear();
    }

    /// A descriptor that is readable when an event is pending.
    pub(super) fn event_kick(&self) -> io::Result<EventFd> {
        self.shared.kick.try_clone()
    }

    fn tell(&self, event: Event) {
        if !self.pending().push(event) {
            self.count("an event was dropped because the driver does not take them");
            return;
        }
        // The counter is full only if a kick is pending anyway.
        let _ = self.shared.kick.write(1);
    }

    fn wake_cleanser(&self, core: MutexGuard<'_, Core>) {
        let has_laundry = core.engine.has_laundry();
        drop(core);
        if has_laundry {
            self.shared.laundry.notify_one();
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // After a panic in one thread the others go on: a wrong engine refuses, and its
        // protection errs on the side of read-only.
        self.shared
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteProtection for RecoveryHandle {
    fn is_protected(&self, frame: u32) -> bool {
        RecoveryHandle::is_protected(self, frame)
    }
}

impl ViolationSink for RecoveryHandle {
    fn violation(&self, violation: &Violation) {
        self.sealed_write(SealedWrite {
            frame: violation.frame,
            vcpu: violation.vcpu,
            address: violation.gva.unwrap_or(0),
            instruction: violation.rip,
            physical: violation.gpa,
            user: violation.cpl == 3,
        });
    }
}

impl fmt::Debug for RecoveryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryHandle")
            .field("window", &self.shared.window)
            .finish_non_exhaustive()
    }
}

/// Time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
