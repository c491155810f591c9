//! Children of a fork: the driver's mappings and registrations belong to the parent.

use super::forget_all;
use crate::os::signals;
use crate::state::domain::App;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Installs the handler, once in a process.
pub(crate) fn install() {
    // Under the lock of opening apps, where nothing is cut short: nobody waits here.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler calls async-signal-safe functions only. Without memory for it a child
        // has no apps: the first access ends it.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    });
}

/// Forks between this process and the one that loaded the library.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Tells whether a request belongs to this process: it has the generation of its start.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

unsafe extern "C" fn child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    forget_all();
    for app in App::all() {
        if let Err(what) = app.backend().after_fork() {
            signals::write_stderr(b"vmsrs: in the child of a fork: ");
            signals::write_stderr(what.as_bytes());
            signals::write_stderr(b"\n");
        }
    }
}
