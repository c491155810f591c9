//! Running a request, or a thread's part of one: its function on the request stack, and the ways out.

use crate::audit::audit_all;
use crate::clib;
use crate::defer::{forget_defers, run_defers};
use crate::domain::Domain;
use crate::error::Error;
use crate::evidence;
use crate::failure::{Failure, Kind};
use crate::heap::Damage;
use crate::lock;
use crate::request::{Options, Request};
use crate::signal;
use crate::thread::{self, AMID, Phase, Thread};
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use vmsrs_protocol::NONE;
use vmsrs_protocol::incident::REG_RIP;

/// What a failure for a lost thread says.
pub(crate) const LOST: &[u8] = b"a thread ended before it left the request";

/// How a request ended when nothing it wrote was kept by its own choice.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Box<Failure>),
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// What the function wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Commit.
    Keep,
    /// Discard.
    GiveUp,
    /// Go on later.
    Suspend,
    /// Only this thread's part is over.
    Leave,
}

/// A request's function.
pub(crate) type Body<'a> = dyn FnMut(&Request) -> End + 'a;

/// How the function ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The request has failed; the thread has come to its landing.
    Cut,
    /// This is the child of a fork.
    Forked,
    Wants(End),
}

struct Call<'a, 'body> {
    thread: &'a Thread,
    body: &'a mut Body<'body>,
    outcome: Outcome,
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}

impl Options {
    /// Milliseconds that the request may take, 0 for no limit.
    pub(crate) fn deadline_ms(&self) -> u32 {
        self.deadline.map_or(0, milliseconds)
    }

    /// Milliseconds to wait for a lock.
    pub(crate) fn patience_ms(&self) -> u32 {
        let patience = self.lock_timeout.or(self.deadline);
        patience.map_or(lock::TIMEOUT_MS, milliseconds)
    }
}

/// Runs `body` as a request; it says whether what it wrote is kept.
pub(crate) fn run(
    domain: &'static Domain,
    options: &Options,
    body: &mut Body<'_>,
) -> Result<(), Stop> {
    if thread::current().is_some() {
        return Err(Error::Nested.into());
    }
    let thread = thread::of(domain.app())?;
    thread.begin(options)?;
    lock_main(thread, domain)?;
    match work(thread, domain, body) {
        Outcome::Cut => Err(failed(thread)),
        Outcome::Forked => Err(Error::Forked.into()),
        Outcome::Wants(End::Keep) => finish(thread, options.seal),
        Outcome::Wants(_) => {
            give_up(thread);
            Ok(())
        }
    }
}

/// Locks the domain that the request begins with. Otherwise the request is over.
pub(crate) fn lock_main(thread: &Thread, domain: &'static Domain) -> Result<(), Stop> {
    let entered = lock::lock(thread, domain, thread.lock_timeout_ms()).and_then(|()| {
        domain
            .check_layout()
            .inspect_err(|_| lock::unlock(thread, domain.number()))
    });
    match entered {
        Ok(has_heap) => {
            thread.state().note_domain(domain, has_heap);
            Ok(())
        }
        Err(_) if thread.is_pending() => {
            thread.note_failure(Kind::Deadline, 0, &[]);
            Err(failed(thread))
        }
        Err(error) => {
            thread.end(true);
            thread.rest();
            Err(error.into())
        }
    }
}

/// Runs `body` on the request stack. Nobody else works for the request afterwards, unless the thread
/// has only joined it.
pub(crate) fn work(thread: &Thread, domain: &'static Domain, body: &mut Body<'_>) -> Outcome {
    thread.request().set_domain(Some(domain));
    let mut call = Call {
        thread,
        body,
        outcome: Outcome::Cut,
    };
    let argument = (&raw mut call).cast();
    // SAFETY: the request stack is free, since requests do not nest; enter() does not unwind. What
    // the body leaves half done when it is cut short is what App::open's contract is about.
    let cut = unsafe { thread.on_request_stack(enter, argument) };
    if call.outcome == Outcome::Forked {
        return Outcome::Forked;
    }
    thread.set_phase(Phase::Ending);
    if cut { Outcome::Cut } else { call.outcome }
}

/// First function on the request stack.
unsafe extern "C" fn enter(argument: *mut std::ffi::c_void) {
    // SAFETY: work() passes its call, which lives until this returns or is cut short.
    let call = unsafe { &mut *argument.cast::<Call<'_, '_>>() };
    let thread = call.thread;
    thread.set_phase(Phase::Running);
    thread.act_on_pending();
    let body = &mut *call.body;
    let ended = catch_unwind(AssertUnwindSafe(|| body(thread.request())));
    if thread.is_forgotten() {
        call.outcome = Outcome::Forked;
        return;
    }
    call.outcome = match ended {
        // Whatever the library was changing is half changed.
        Ok(_) if thread.is_amid() => {
            thread.note_failure(Kind::Memory, 0, AMID);
            Outcome::Cut
        }
        Ok(End::Leave) => Outcome::Wants(End::Leave),
        Ok(end) => settle(thread, end),
        Err(payload) => {
            thread.note_failure(Kind::Panic, 0, panic_text(&*payload).as_bytes());
            // Whatever the payload's destructor does, the request has failed.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            Outcome::Cut
        }
    };
    thread.set_phase(Phase::Ending);
}

/// Waits until the other threads have left, and audits. Still inside of the request: it can fail.
fn settle(thread: &Thread, end: End) -> Outcome {
    let all_left = thread.state().close();
    thread.act_on_pending();
    if !all_left {
        thread.note_failure(Kind::ThreadDeath, 0, LOST);
        return Outcome::Cut;
    }
    if end == End::Keep
        && needs_audit(thread)
        && let Err(damage) = thread.exclusive(|| audit_all(thread))
    {
        thread.note_failure(damage.kind, damage.address, &[]);
        return Outcome::Cut;
    }
    Outcome::Wants(end)
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "",
    }
}

/// Without protection nobody counts drafts, and the audit is cheap: it always takes place.
fn needs_audit(thread: &Thread) -> bool {
    thread.has_drafts() || !thread.app().backend().protects() || !thread.is_whole()
}

/// Audits and commits from inside of the request, which fails with what the audit finds. Meanwhile no
/// other thread of the request uses its heaps: what is committed is what was audited.
pub(crate) fn audited<T>(
    thread: &Thread,
    audit: impl FnOnce(&Thread) -> Result<(), Damage>,
    commit: impl FnOnce() -> T,
) -> T {
    thread.refuse_amid();
    thread.exclusive(|| {
        if needs_audit(thread)
            && let Err(damage) = audit(thread)
        {
            thread::fail_request(damage.kind, damage.address, &[]);
        }
        thread.critical(commit)
    })
}

/// A commit that the driver refuses because the request has failed meanwhile fails it here too.
pub(crate) fn refused_commit(thread: &Thread, error: io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ESTALE) && thread.phase() == Phase::Running {
        thread::fail_request(Kind::Deadline, 0, &[]);
    }
    Error::system("committing")(error)
}

pub(crate) fn commit_all(thread: &Thread, seal: bool) -> Result<(), Error> {
    if !thread.has_drafts() {
        return Ok(());
    }
    let backend = thread.app().backend();
    match backend.commit(thread.tag(), NONE, seal) {
        Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) && seal => {
            thread.clear_drafts();
            Err(Error::Unsealed)
        }
        Err(error) => Err(refused_commit(thread, error)),
        Ok(()) => {
            thread.clear_drafts();
            Ok(())
        }
    }
}

/// Unlocks everything, newest first.
fn unlock_all(thread: &Thread) {
    for &domain in thread.state().held().as_slice().iter().rev() {
        lock::unlock(thread, domain);
    }
}

/// The good end.
pub(crate) fn finish(thread: &Thread, seal: bool) -> Result<(), Stop> {
    let state = thread.state();
    // It has ended in time. That the commit may wait for its seal is no reason to fail it, nor to report it.
    thread.meet_deadline();
    let committed = commit_all(thread, seal);
    if let Err(Error::System { source, .. }) = &committed {
        if source.raw_os_error() == Some(libc::ESTALE) {
            thread.note_failure(Kind::Deadline, 0, &[]);
            return Err(failed(thread));
        }
        discard(thread);
    }
    unlock_all(thread);
    let kept = matches!(committed, Ok(()) | Err(Error::Unsealed));
    thread.end(kept);
    if kept {
        forget_defers(thread, state);
    } else {
        run_defers(thread, state);
    }
    thread.rest();
    Ok(committed?)
}

/// The end that the function asked for.
pub(crate) fn give_up(thread: &Thread) {
    let state = thread.state();
    discard(thread);
    unlock_all(thread);
    thread.end(false);
    run_defers(thread, state);
    thread.rest();
}

fn discard(thread: &Thread) {
    if thread.has_drafts()
        && let Err(error) = thread.app().backend().discard(thread.tag())
    {
        give_in("cannot discard what the request wrote", &error);
    }
}

/// What the request wrote can be neither kept nor taken back: only the process's end, which discards
/// it as well, keeps the promise.
fn give_in(what: &str, error: &io::Error) -> ! {
    signal::say(b"vmsrs: ");
    signal::say(what.as_bytes());
    signal::say(b": ");
    give_in_because(error.to_string().as_bytes());
}

/// Ends the process: nothing else is left that keeps the promises.
fn give_in_because(what: &[u8]) -> ! {
    signal::say(what);
    signal::say(b"; the process ends, committed domains are whole\n");
    signal::end_process()
}

/// The bad end: discard, free the locks, report, let the others come to their landings, run the
/// defers.
pub(crate) fn failed(thread: &Thread) -> Stop {
    let state = thread.state();
    let mut failure = report(thread);
    state.members.wait();
    // What another thread locked while the driver released the locks, and what a stray write has taken from
    // the list that the driver reads. Nobody else changes either now.
    for held in [state.held(), state.domains()] {
        for &domain in held.as_slice() {
            lock::release(thread, domain);
        }
    }
    thread.end(false);
    failure.defers_failed = run_defers(thread, state);
    thread.rest();
    Stop::Failed(Box::new(failure))
}

/// The same for a thread that has joined the request of another.
pub(crate) fn failed_member(thread: &Thread) -> Stop {
    let failure = report(thread);
    thread.state().members.wait_for_started();
    thread.leave();
    Stop::Failed(Box::new(failure))
}

/// Discards and reports. All threads of a request get the same failure, that of the first.
fn report(thread: &Thread) -> Failure {
    thread.land();
    thread.repair_control();
    let mut record = thread.record();
    let mut first = false;
    let failure = thread.state().fail(|| {
        first = true;
        record.tag = thread.tag();
        evidence::attach(&mut record, thread.stack_region(), thread.message());
        let held = thread.state().held();
        loop {
            match thread.app().backend().fail(&mut record, held.as_slice()) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => give_in("cannot discard what the failed request wrote", &error),
            }
        }
        signal::unblock();
        examine(thread, record.signal, record.registers[REG_RIP]);
        let message = String::from_utf8_lossy(thread.message()).into_owned();
        Failure {
            kind: Kind::from_number(record.kind).unwrap_or(Kind::Memory),
            incident: record.incident,
            address: record.address,
            instruction: record.registers[REG_RIP],
            signal: record.signal,
            code: record.code,
            drafts: record.drafts,
            recovery: Duration::from_nanos(record.recovery_ns),
            defers_failed: 0,
            message,
        }
    });
    if !first {
        signal::unblock();
        examine(thread, record.signal, record.registers[REG_RIP]);
    }
    failure
}

/// Ends the process if the thread has left the C library's heap locked or damaged.
fn examine(thread: &Thread, signal: i32, instruction: u64) {
    if clib::is_suspect(signal, instruction) && !clib::heap_works(thread) {
        give_in_because(b"vmsrs: the C library's heap is damaged or stays locked");
    }
}
