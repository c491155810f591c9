//! Calling what a request has registered for after its commit.

use super::defer::forget;
use super::end::abort_process;
use crate::state::State;
use crate::state::on_commit::OnCommit;
use crate::thread::Thread;

/// What a request fails with.
pub(crate) const DAMAGED: &[u8] = b"the list of what is called after the commit was overwritten";

/// Calls all of them, in order: the request is committed, and the thread has none.
#[inline]
pub(super) fn call_all(thread: &Thread, state: &State, list: Option<OnCommit>) {
    if let Some(list) = list {
        call_each(thread, state, list);
    }
}

#[cold]
#[inline(never)]
fn call_each(thread: &Thread, state: &State, list: OnCommit) {
    let _held = thread.hold_arena();
    // It was whole before the commit. The server would believe that it was done.
    let Some([due, rest]) = list.places() else {
        abort_process(DAMAGED);
    };
    for place in due.start..rest.end {
        match list.take(place) {
            Some(deferred) => deferred.call(),
            None => abort_process(DAMAGED),
        }
    }
    state.keep_on_commit(list);
}

/// Drops those that are not due, since the request was not committed, each so that an error in what it owns ends it alone. Returns
/// how many that has happened to, or are lost since a stray write has changed the list, also of those that are due.
#[inline]
pub(crate) fn forget_rest(thread: &Thread, list: Option<&OnCommit>) -> u32 {
    list.map_or(0, |list| forget_each(thread, list))
}

#[cold]
#[inline(never)]
fn forget_each(thread: &Thread, list: &OnCommit) -> u32 {
    let Some([due, rest]) = list.places() else {
        return 1;
    };
    let damaged = due.filter(|&place| !list.has(place));
    let mut failed = damaged.count() as u32;
    for place in rest {
        let done = list
            .take(place)
            .is_some_and(|deferred| forget(thread, deferred));
        failed += u32::from(!done);
    }
    failed
}

/// Calls those that are due although the request was not committed at its end.
#[inline]
pub(crate) fn call_due(thread: &Thread, state: &State, list: Option<OnCommit>) {
    if let Some(list) = list {
        let _held = thread.hold_arena();
        call_each_due(state, list);
    }
}

#[cold]
#[inline(never)]
fn call_each_due(state: &State, list: OnCommit) {
    for place in list.places().map_or(0..0, |[due, _]| due) {
        if let Some(deferred) = list.take(place) {
            deferred.call();
        }
    }
    state.keep_on_commit(list);
}

/// Ends the list of a suspended request that is dropped where nothing can be run on the request stack.
pub(crate) fn end_here(state: &State, list: Option<OnCommit>) {
    if let Some(list) = list {
        for place in list.places().map_or(0..0, |[_, rest]| rest) {
            drop(list.take(place));
        }
        call_each_due(state, list);
    }
}
