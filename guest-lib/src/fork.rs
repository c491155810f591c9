//! Children of a fork: the driver's mappings and registrations are the parent's.

use crate::app::App;
use crate::{signal, thread};
use std::sync::Once;

/// Installs the handler, once in a process.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler calls async-signal-safe functions only. Without memory for it a child
        // has no apps: the first access ends it.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    });
}

unsafe extern "C" fn child() {
    thread::forget_all();
    for app in App::all() {
        if let Err(what) = app.backend().after_fork() {
            signal::say(b"vmsrs: in the child of a fork: ");
            signal::say(what.as_bytes());
            signal::say(b"\n");
        }
    }
}
