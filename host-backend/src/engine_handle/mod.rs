//! The shared handle to the engine and its lock, for the queues' thread, the cleanser, the scrubber,
//! the vCPU threads and the control socket.

mod pending;

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::event::Event;

use self::pending::Pending;
use crate::engine::{
    Engine, Position, Reply, Retry, Scope, ScrubTurn, SealedWrite, handle_message,
};
use crate::regions::{AccessError, Regions};
use crate::tally::Tally;
use crate::vmm::fault::{Violation, ViolationSink};

/// Pages checked at a time, so that a message of the driver does not wait long for the engine.
const SCRUB_BATCH: u32 = 32;

/// The background threads must end.
#[derive(Debug)]
pub(crate) struct Stopping;

/// A handle to the recovery engine. Clones refer to the same engine.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// Guards the engine and the memory of pool and vault, which change together.
    core: Mutex<Core>,
    /// Signalled when frames are retired or the cleanser must end.
    retired: Condvar,
    /// Signalled when a domain is to be checked soon or the scrubber must end.
    suspects: Condvar,
    /// Guards the events that wait for the driver's buffers. Taken after `core` where both are held.
    pending: Mutex<Pending>,
    /// Readable when an event is pending.
    kick: EventFd,
    tally: Tally,
}

struct Core {
    engine: Engine,
    regions: Regions,
    /// A driver has started the device, and not reset it since.
    has_driver: bool,
    /// The cleanser and the scrubber must end.
    stopping: bool,
    /// The cleanser waits for retired frames: only then is it woken.
    cleanser_waits: bool,
}

impl EngineHandle {
    pub(crate) fn new(engine: Engine, regions: Regions) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                core: Mutex::new(Core {
                    engine,
                    regions,
                    has_driver: false,
                    stopping: false,
                    cleanser_waits: false,
                }),
                retired: Condvar::new(),
                suspects: Condvar::new(),
                pending: Mutex::default(),
                kick: EventFd::new(EFD_NONBLOCK)?,
                tally: Tally::default(),
            }),
        })
    }

    /// Reads something of the engine, which is locked meanwhile.
    pub fn read<T>(&self, reader: impl FnOnce(&Engine) -> T) -> T {
        reader(&self.core().engine)
    }

    /// What the driver was refused, with how often.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.shared.tally.counts()
    }

    /// Records a write that the second-level page table stopped, notifies the driver, and returns the
    /// number of the incident.
    pub fn sealed_write(&self, write: SealedWrite) -> u64 {
        let event = self.core().engine.sealed_write(now(), write);
        self.notify_driver(event);
        event.incident
    }

    /// Records the end of the guest's kernel, after the device was reset: what the reset dropped becomes
    /// an incident. `reason` is a sentence without a full stop.
    pub fn guest_down(&self, reason: &str) {
        self.core().engine.guest_down(now(), reason);
    }

    /// Finds an app, and a domain in it if a key is given.
    pub fn find(&self, app: &str, domain: Option<&str>) -> Option<Scope> {
        self.core()
            .engine
            .find(app.as_bytes(), domain.map(str::as_bytes))
    }

    /// Number of sealed pages in scope.
    pub fn sealed_pages(&self, scope: Scope) -> u64 {
        self.core().engine.sealed_pages(scope)
    }

    /// Checks sealed pages from a position on, with the work of at most `pages` of them; returns what was
    /// found and where to go on. Others get the engine between batches.
    pub fn scrub(&self, scope: Scope, position: Position, pages: u32) -> ScrubTurn {
        let mut turn = ScrubTurn {
            next: Some(position),
            ..ScrubTurn::default()
        };
        while let Some(position) = turn.next
            && turn.looked < u64::from(pages)
        {
            // The rest is no more than `pages`.
            let left = (u64::from(pages) - turn.looked) as u32;
            let batch = left.min(SCRUB_BATCH);
            let mut core = self.core();
            let Core {
                engine, regions, ..
            } = &mut *core;
            let part = engine.scrub(now(), scope, position, batch, regions);
            self.release(core);
            turn.found.add(part.found);
            // At least 1, so that this ends whatever a part has to look at.
            turn.looked += part.looked.max(1);
            turn.next = part.next;
        }
        turn
    }

    /// Handles an access of the guest that the hardware stopped because the frame's memory is broken.
    /// Returns what becomes of the access.
    pub fn poisoned(&self, frame: u32) -> Retry {
        let mut core = self.core();
        let Core {
            engine, regions, ..
        } = &mut *core;
        let retry = engine.poisoned(now(), frame, regions);
        self.release(core);
        retry
    }

    /// Waits until a domain is to be checked, at most for `pause`; `Err` when the scrubber must end.
    pub(crate) fn wait_for_suspect(&self, pause: Duration) -> Result<Option<Scope>, Stopping> {
        let (mut core, _) = self
            .shared
            .suspects
            .wait_timeout_while(self.core(), pause, |core| {
                !core.stopping && !core.engine.has_suspects()
            })
            .unwrap_or_else(PoisonError::into_inner);
        match core.stopping {
            true => Err(Stopping),
            false => Ok(core.engine.take_suspect()),
        }
    }

    /// Notes that a driver has started the device.
    pub(crate) fn driver_started(&self) {
        let mut core = self.core();
        core.engine.driver_started();
        core.has_driver = true;
    }

    /// Whether a driver has started the device and not reset it since.
    pub(crate) fn has_driver(&self) -> bool {
        self.core().has_driver
    }

    /// What the driver reads in the configuration space.
    pub(crate) fn device_config(&self) -> DeviceConfig {
        self.core().engine.device_config()
    }

    /// Handles one message of the driver.
    pub(crate) fn message(&self, message: &[u8], room: usize) -> Reply {
        let mut core = self.core();
        let Core {
            engine, regions, ..
        } = &mut *core;
        let reply = handle_message(engine, regions, now(), message, room);
        self.release(core);
        if let Some(refusal) = reply.refusal {
            self.count(refusal.reason());
        }
        reply
    }

    /// Ends a boot of the guest.
    pub(crate) fn reset(&self) {
        let mut core = self.core();
        core.engine.reset();
        core.has_driver = false;
        self.release(core);
        self.drop_events();
    }

    /// Counts an error of the driver; true if it is the first of its kind.
    pub(crate) fn count(&self, what: &'static str) -> bool {
        self.shared.tally.add("vmsrs", what)
    }

    /// Waits until frames are retired, at most for `pause` if there is one; `Err` when the cleanser must
    /// end.
    pub(crate) fn wait_for_retired(&self, pause: Option<Duration>) -> Result<(), Stopping> {
        let idle = |core: &mut Core| {
            core.cleanser_waits = !core.stopping && !core.engine.has_retired();
            core.cleanser_waits
        };
        let retired = &self.shared.retired;
        let core = match pause {
            None => retired
                .wait_while(self.core(), idle)
                .unwrap_or_else(PoisonError::into_inner),
            Some(pause) => {
                retired
                    .wait_timeout_while(self.core(), pause, idle)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        match core.stopping {
            true => Err(Stopping),
            false => Ok(()),
        }
    }

    /// Waits so long; `Err` when the cleanser must end.
    pub(crate) fn pause_cleanser(&self, pause: Duration) -> Result<(), Stopping> {
        let (core, _) = self
            .shared
            .retired
            .wait_timeout_while(self.core(), pause, |core| !core.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        match core.stopping {
            true => Err(Stopping),
            false => Ok(()),
        }
    }

    /// How many retired frames no seal has used since the last call, at most.
    pub(crate) fn take_unused(&self) -> u32 {
        self.core().engine.take_unused()
    }

    /// Wipes up to `frames` retired frames, which are free then. One that cannot be wiped is set aside.
    /// Returns the first error, and whether frames are set aside; `Err` when the cleanser must end.
    pub(crate) fn cleanse(&self, frames: u32) -> Result<(Result<(), AccessError>, bool), Stopping> {
        let mut core = self.core();
        if core.stopping {
            return Err(Stopping);
        }
        let Core {
            engine, regions, ..
        } = &mut *core;
        let result = engine.cleanse(frames, |frame| regions.vault.wipe(frame));
        Ok((result, engine.has_unwiped()))
    }

    /// Lets the frames that could not be wiped be tried again.
    pub(crate) fn retry_unwiped(&self) {
        self.core().engine.retry_unwiped();
    }

    /// Makes the cleanser and the scrubber end after the batch they are at.
    pub(crate) fn stop_background(&self) {
        self.core().stopping = true;
        self.shared.retired.notify_all();
        self.shared.suspects.notify_all();
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.pending().is_empty()
    }

    pub(crate) fn pop_event(&self) -> Option<Event> {
        self.pending().pop()
    }

    pub(crate) fn drop_events(&self) {
        self.pending().clear();
    }

    /// A descriptor that is readable when an event is pending.
    pub(crate) fn event_kick(&self) -> io::Result<EventFd> {
        self.shared.kick.try_clone()
    }

    fn notify_driver(&self, event: Event) {
        if !self.pending().push(event) {
            self.count("an event was dropped because the driver does not take them");
            return;
        }
        // The counter is full only if a kick is pending anyway.
        let _ = self.shared.kick.write(1);
    }

    /// Releases the engine: wakes the threads that have work, and sends the driver its events.
    fn release(&self, mut core: MutexGuard<'_, Core>) {
        let events = core.engine.take_events();
        let wakes_cleanser = core.cleanser_waits && core.engine.has_retired();
        core.cleanser_waits &= !wakes_cleanser;
        let has_suspects = core.engine.has_suspects();
        // Before the lock is released: a driver that starts reads the state, and no later event may be
        // older than that state.
        for event in events {
            self.notify_driver(event);
        }
        drop(core);
        if wakes_cleanser {
            self.shared.retired.notify_one();
        }
        if has_suspects {
            self.shared.suspects.notify_one();
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // After a panic in one thread the others continue: an inconsistent engine refuses.
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

impl ViolationSink for EngineHandle {
    fn broken(&self, frame: u32) -> Retry {
        self.poisoned(frame)
    }

    fn violation(&self, violation: &Violation) {
        let write = SealedWrite {
            frame: violation.frame,
            vcpu: violation.vcpu,
            address: violation.gva.unwrap_or(0),
            instruction: violation.rip,
            physical: violation.gpa,
            cpl: violation.cpl,
            cr3: violation.cr3,
            registers: violation.registers,
            ..SealedWrite::default()
        };
        self.sealed_write(write.with_code(&violation.code));
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").finish_non_exhaustive()
    }
}

/// Time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
