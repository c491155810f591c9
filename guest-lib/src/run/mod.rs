//! Running a request, or a thread's part of one: its function on the request stack, and the ways out.

pub(crate) mod aside;
pub(crate) mod audit;
pub(crate) mod commit;
pub(crate) mod defer;
mod end;
pub(crate) mod health;
pub(crate) mod hold;
pub(crate) mod hot;
pub(crate) mod left;
pub(crate) mod lock;
pub(crate) mod on_commit;
mod panic_hook;
mod report;
pub(crate) mod request;
mod restore;
mod trial;
mod unwind;

use crate::error::Error;
use crate::failure::{Failure, Kind, LOST, panic_text};
use crate::os::errno;
use crate::os::switch::{self, LANDED};
use crate::state::Limits;
use crate::state::domain::Domain;
use crate::state::on_commit::OnCommit;
use crate::thread::{self, Needs, Phase, REENTRANT, Thread};
use audit::{audit_all, audit_plain};
use commit::{commit_all, commit_listed, needs_audit};
use defer::{forget_defers, release_mutexes, run_defers};
use left::end_left;
use report::{abort_with, report};
use request::Request;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use vmsrs_protocol::ioctl::COMMIT_ALONE;

/// How a request ended other than by its own choice.
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

/// A part of a request's function.
pub(crate) type Body<'a> = dyn FnMut(&Request) -> End + 'a;

/// How the function ended, as the request stack hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    /// It wants to keep what it wrote, which is nothing; its only domain is unlocked already.
    Quiet = 0,
    /// The request has failed; the thread has come to its landing.
    Cut = LANDED,
    /// It wants to keep what it wrote to its only domain, which was audited, if it has written to it. There is nothing
    /// else to end.
    Plain,
    /// This is the child of a fork.
    Forked,
    Keep,
    GiveUp,
    Suspend,
    Leave,
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        match end {
            End::Keep => Self::Keep,
            End::GiveUp => Self::GiveUp,
            End::Suspend => Self::Suspend,
            End::Leave => Self::Leave,
        }
    }
}

/// What the failure says where a block of the arena was overrun.
pub(crate) const ARENA: &[u8] = b"a block of the request's arena";

/// What the failure says where a variable cannot go back.
const KEPT_DAMAGED: &[u8] = b"a copy of a variable that is kept was overwritten";

/// What the failure says.
const LOCKED: &[u8] = b"a thread's part of the request, or a step, has ended with a mutex locked";

struct Call<'a, B> {
    thread: &'a Thread,
    domain: &'static Domain,
    /// Where it is: most are too large to be worth a move.
    body: &'a mut ManuallyDrop<B>,
}

impl From<Box<Error>> for Box<Stop> {
    #[cold]
    #[inline(never)]
    fn from(error: Box<Error>) -> Self {
        (*error).into()
    }
}

impl From<Error> for Box<Stop> {
    fn from(error: Error) -> Self {
        Self::new(error.into())
    }
}

/// Runs `body` as a request; it says whether what it wrote is kept. The error is boxed so that a good end is one
/// word. `TIMED` if it may have a deadline.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn run<const TIMED: bool, B: FnOnce(&Request) -> End>(
    domain: &'static Domain,
    limits: Limits,
    seal: bool,
    body: B,
) -> Result<(), Box<Stop>> {
    let thread = match thread::idle(domain.app()) {
        Some(thread) => thread,
        None => find_thread(domain)?,
    };
    let tag = thread.begin(limits)?;
    if !lock_free(thread, domain, tag) {
        lock_taken(thread, domain)?;
    }
    if domain.may_be_hot() {
        hot::enter(thread, domain, tag)?;
    }
    let outcome = work::<TIMED, B>(thread, domain, body);
    if outcome == Outcome::Quiet {
        thread.end_plain::<false>();
        return Ok(());
    }
    end(thread, domain, seal, outcome)
}

/// Ends a request that is not quiet.
#[inline(never)]
fn end(
    thread: &Thread,
    domain: &'static Domain,
    seal: bool,
    outcome: Outcome,
) -> Result<(), Box<Stop>> {
    let ended = match outcome {
        Outcome::Plain => return finish_plain(thread, domain, seal),
        Outcome::Keep => return finish(thread, seal),
        Outcome::Cut => return Err(thread.boxed(failed(thread))),
        Outcome::Forked => Err(Error::Forked.into()),
        _ => {
            give_up(thread);
            Ok(())
        }
    };
    ended.map_err(Box::new)
}

/// The calling thread, which has no request.
#[cold]
fn find_thread(domain: &'static Domain) -> Result<&'static Thread, Box<Stop>> {
    end_left();
    if thread::current().is_some() {
        return Err(Error::Nested.into());
    }
    Ok(thread::of(domain.app())?)
}

/// Prepares the calling thread for a request that needs more than others.
///
/// # Errors
///
/// [`Error::Nested`], [`Error::Argument`], [`Error::System`].
#[cold]
pub(crate) fn prepare(domain: &'static Domain, needs: Needs) -> Result<(), Error> {
    end_left();
    if thread::current().is_some() {
        return Err(Error::Nested);
    }
    thread::of(domain.app())?.prepare(needs)
}

/// Waits for the domain that the request begins with.
#[cold]
fn lock_taken(thread: &Thread, domain: &'static Domain) -> Result<(), Box<Stop>> {
    lock_main(thread, domain).map_err(Box::new)
}

/// Locks the domain that the request begins with, if it is free and the library understands it. Otherwise
/// nothing has changed.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
fn lock_free(thread: &Thread, domain: &'static Domain, tag: u64) -> bool {
    if !lock::lock_first(thread, domain, tag) {
        return false;
    }
    if !domain.is_known() {
        return check_unknown(thread, domain);
    }
    thread.state().note_first(domain, true);
    true
}

/// The same for a domain that was not looked at before, and is locked.
#[cold]
fn check_unknown(thread: &Thread, domain: &'static Domain) -> bool {
    let Ok(has_heap) = domain.check_layout() else {
        lock::unlock(thread, domain.number());
        return false;
    };
    if has_heap {
        domain.note_known();
    }
    thread.state().note_first(domain, has_heap);
    true
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
            thread.go_idle();
            Err(error.into())
        }
    }
}

/// Runs `body` on the request stack. Afterwards no other thread works for the request, unless this one has
/// only joined it.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn work<const TIMED: bool, B: FnOnce(&Request) -> End>(
    thread: &Thread,
    domain: &'static Domain,
    body: B,
) -> Outcome {
    thread.set_domain(domain);
    let mut body = ManuallyDrop::new(body);
    let mut call = Call {
        thread,
        domain,
        body: &mut body,
    };
    let argument = (&raw mut call).cast();
    // SAFETY: the request stack is free, since requests do not nest; enter() does not unwind. What
    // the body leaves half done when it is cut short is covered by App::open's contract.
    let code = unsafe { thread.on_request_stack(enter::<TIMED, B>, argument) };
    // SAFETY: from enter(), or LANDED.
    unsafe { std::mem::transmute::<u32, Outcome>(code) }
}

/// First function on the request stack. Returns an [`Outcome`].
unsafe extern "C" fn enter<const TIMED: bool, B: FnOnce(&Request) -> End>(
    argument: *mut std::ffi::c_void,
) -> u32 {
    // SAFETY: work() passes its call, which lives until this returns or is cut short.
    let call = unsafe { &mut *argument.cast::<Call<'_, B>>() };
    let (thread, domain) = (call.thread, call.domain);
    // SAFETY: once, here.
    let body = unsafe { ManuallyDrop::take(call.body) };
    thread.set_phase(Phase::Running);
    if TIMED {
        thread.act_on_early();
    }
    let ended = catch_unwind(AssertUnwindSafe(|| body(Request::of(thread))));
    let outcome = match ended {
        Ok(End::Keep) => match thread.plain_tag(domain) {
            Some(tag) => end_plain(thread, domain, tag),
            None => wind_up(thread, Ok(End::Keep)),
        },
        ended => wind_up(thread, ended),
    };
    thread.set_phase(Phase::Outside);
    outcome as u32
}

/// Unlocks the domain of a plain request that has written nothing, or audits it. Still inside the request: it can fail.
/// A signal handler of the server that writes from here on fails it: it could neither be audited any more nor be told from
/// one that comes after the lock was released.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
fn end_plain(thread: &Thread, domain: &'static Domain, tag: u64) -> Outcome {
    thread.end_writes();
    if thread.has_listed(tag) {
        return end_written(thread, domain, tag);
    }
    if lock::release_quietly(domain, tag) {
        return Outcome::Quiet;
    }
    end_awaited(thread, domain, tag)
}

/// The domain's lock has waiters, or is not the request's.
#[cold]
fn end_awaited(thread: &Thread, domain: &'static Domain, tag: u64) -> Outcome {
    if domain.holder() == tag {
        Outcome::Plain
    } else {
        thread.allow_writes();
        wind_up(thread, Ok(End::Keep))
    }
}

#[inline(never)]
fn end_written(thread: &Thread, domain: &'static Domain, tag: u64) -> Outcome {
    // The audit reads words that are not aligned.
    switch::clear_flags();
    match errno::kept(|| audit_plain(thread, domain, tag)) {
        Ok(true) => Outcome::Plain,
        Ok(false) => {
            thread.allow_writes();
            wind_up(thread, Ok(End::Keep))
        }
        Err(damage) => {
            thread.note_failure(damage.kind, damage.address, &[]);
            Outcome::Cut
        }
    }
}

/// How the function of a request ended that is not quiet. Still inside the request: it can fail.
#[inline(never)]
fn wind_up(thread: &Thread, ended: std::thread::Result<End>) -> Outcome {
    switch::clear_flags();
    if thread.is_forgotten() {
        return Outcome::Forked;
    }
    match ended {
        // The data that the library was changing is half changed.
        Ok(_) if thread.is_inside_library() => {
            thread.note_failure(Kind::Memory, 0, REENTRANT);
            Outcome::Cut
        }
        // Its thread goes: the mutex would belong to nobody.
        Ok(End::Leave | End::Suspend) if thread.has_mutex(thread.state().tag()) => {
            thread.note_failure(Kind::Invariant, 0, LOCKED);
            Outcome::Cut
        }
        Ok(End::Leave) => Outcome::Leave,
        Ok(end) => errno::kept(|| settle(thread, end)),
        Err(payload) => {
            // Printing panics if a deadline has ended it.
            let kind = if thread.is_pending() {
                Kind::Deadline
            } else {
                Kind::Panic
            };
            thread.note_failure(kind, 0, panic_text(&*payload).as_bytes());
            // Whatever the payload's destructor does, the request has failed.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            Outcome::Cut
        }
    }
}

/// Waits until the other threads have left, and audits. Still inside the request: it can fail.
fn settle(thread: &Thread, end: End) -> Outcome {
    let all_left = thread.state().close(thread::sweep);
    thread.act_on_pending();
    if end != End::Keep || !hot::may_stay(thread) {
        hot::leave(thread);
    }
    if !all_left {
        thread.note_failure(Kind::ThreadDeath, 0, LOST);
        return Outcome::Cut;
    }
    if end != End::GiveUp
        && let Some(address) = thread.arena().find_damage()
    {
        thread.note_failure(Kind::RedZone, address, ARENA);
        return Outcome::Cut;
    }
    let is_over = matches!(end, End::Keep | End::GiveUp);
    if is_over && !thread.state().is_on_commit_whole() {
        thread.note_failure(Kind::Memory, 0, on_commit::DAMAGED);
        return Outcome::Cut;
    }
    if end == End::GiveUp && !thread.state().is_kept_whole() {
        thread.note_failure(Kind::Memory, 0, KEPT_DAMAGED);
        return Outcome::Cut;
    }
    if end == End::Keep
        && needs_audit(thread)
        && let Err(damage) = thread.exclusive(|| audit_all(thread))
    {
        thread.note_failure(damage.kind, damage.address, &[]);
        return Outcome::Cut;
    }
    end.into()
}

/// Unlocks everything, newest first. No other thread works for the request any more.
fn unlock_all(thread: &Thread) {
    let state = thread.state();
    while let Some(domain) = state.newest_held() {
        lock::release(thread, domain);
        state.remove_newest_held();
    }
}

/// Commits and ends the request.
pub(crate) fn finish(thread: &Thread, seal: bool) -> Result<(), Box<Stop>> {
    // It has ended in time. Waiting for the seal neither fails it nor is reported.
    thread.clear_driver_deadline();
    let flags = if hot::is_alone(thread) {
        COMMIT_ALONE
    } else {
        0
    };
    errno::kept(|| end_committed(thread, commit_all(thread, seal, flags))).map_err(Box::new)
}

/// The same for a request that is plain.
pub(crate) fn finish_plain(
    thread: &Thread,
    domain: &'static Domain,
    seal: bool,
) -> Result<(), Box<Stop>> {
    errno::kept(|| {
        let tag = thread.tag();
        if thread.has_listed(tag) {
            let committed = commit_listed(thread, seal, COMMIT_ALONE);
            // A signal handler of the server may have run meanwhile.
            if committed.is_err() || thread.has_marks() {
                return end_committed(thread, committed.map_err(|error| *error)).map_err(Box::new);
            }
        }
        lock::release_domain(domain, tag);
        thread.end_plain::<true>();
        thread.go_own();
        Ok(())
    })
}

/// Ends the request after its commit.
#[inline(never)]
fn end_committed(thread: &Thread, committed: Result<(), Error>) -> Result<(), Stop> {
    let state = thread.state();
    if let Err(Error::System { source, .. }) = &committed {
        if source.raw_os_error() == Some(libc::ESTALE) {
            thread.note_failure(Kind::Deadline, 0, &[]);
            return Err(failed(thread));
        }
        if source.raw_os_error() == Some(libc::EOWNERDEAD) {
            thread.note_failure(Kind::Memory, 0, hot::TAKEN);
            return Err(failed(thread));
        }
        if !state.is_kept_whole() {
            thread.note_failure(Kind::Memory, 0, KEPT_DAMAGED);
            return Err(failed(thread));
        }
        state.restore_kept();
        discard(thread);
    }
    unlock_all(thread);
    let (kept, tag) = (commit::is_committed(&committed), state.tag());
    let after = state.take_on_commit();
    thread.end(kept);
    if kept {
        forget_defers(thread, state);
        thread.go_idle();
        on_commit::call_all(thread, state, after);
    } else {
        release_mutexes(thread, tag);
        run_defers(thread, state);
        on_commit::forget_rest(thread, after.as_ref());
        thread.go_idle();
        on_commit::call_due(thread, state, after);
    }
    Ok(committed?)
}

/// Discards and ends the request, as its function asked.
pub(crate) fn give_up(thread: &Thread) {
    errno::kept(|| {
        let (state, tag) = (thread.state(), thread.state().tag());
        // Under the locks of the request's domains.
        state.restore_kept();
        discard(thread);
        unlock_all(thread);
        let after = state.take_on_commit();
        thread.end(false);
        release_mutexes(thread, tag);
        run_defers(thread, state);
        on_commit::forget_rest(thread, after.as_ref());
        thread.go_idle();
        on_commit::call_due(thread, state, after);
    });
}

fn discard(thread: &Thread) {
    if thread.has_drafts()
        && let Err(error) = thread.app().backend().discard(thread.tag())
    {
        abort_with("cannot discard what the request wrote", &error);
    }
}

/// Ends a failed request: discards, releases the locks, reports, waits for the other threads, runs the
/// defers.
pub(crate) fn failed(thread: &Thread) -> Stop {
    errno::kept(|| fail(thread))
}

fn fail(thread: &Thread) -> Stop {
    let state = thread.state();
    // Before the locks of its domains are free, unless other threads may still write for the request.
    let mut lost = if state.is_alone() {
        state.restore_kept()
    } else {
        0
    };
    let mut failure = thread.boxed(report(thread));
    state.members.wait(thread::sweep);
    lost += state.restore_kept();
    thread.leave_lent_stack();
    // What another thread locked while the driver released the locks, and what a stray write has taken from
    // the list that the driver reads. No other thread changes either now.
    for domain in (0..state.listed()).filter_map(|place| state.listed_at(place)) {
        lock::release(thread, domain);
    }
    for domain in (0..state.places()).filter_map(|place| state.domain_at(place)) {
        lock::release_domain(domain, thread.tag());
    }
    failure.defers_failed = lost;
    match state.take_on_commit() {
        None => end_failed(thread, failure, None),
        Some(after) => end_failed_with(thread, failure, after),
    }
}

/// Ends a failed request that has registered something for after its commit.
#[cold]
#[inline(never)]
fn end_failed_with(thread: &Thread, failure: Box<Failure>, after: OnCommit) -> Stop {
    end_failed(thread, failure, Some(after))
}

/// Ends a failed request, whose locks are free.
#[expect(
    clippy::inline_always,
    reason = "most requests have no list, which is large"
)]
#[inline(always)]
fn end_failed(thread: &Thread, mut failure: Box<Failure>, after: Option<OnCommit>) -> Stop {
    let (state, tag) = (thread.state(), thread.state().tag());
    thread.end(false);
    failure.defers_failed += release_mutexes(thread, tag)
        + run_defers(thread, state)
        + on_commit::forget_rest(thread, after.as_ref());
    let domain = thread.domain();
    thread.go_idle();
    health::note_failure(domain, &failure);
    on_commit::call_due(thread, state, after);
    Stop::Failed(failure)
}

/// The same for a thread that has joined the request of another.
pub(crate) fn failed_member(thread: &Thread) -> Stop {
    errno::kept(|| {
        let failure = report(thread);
        thread.state().members.wait_for_started(thread::sweep);
        thread.leave_lent_stack();
        release_mutexes(thread, thread.state().tag());
        thread.leave();
        Stop::Failed(thread.boxed(failure))
    })
}

#[cfg(test)]
mod tests;
