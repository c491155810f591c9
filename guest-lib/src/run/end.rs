//! Ending the process where it cannot go on.

use crate::os::signals;

/// Ends the process: domains stay as committed.
pub(super) fn abort_process(what: &[u8]) -> ! {
    signals::write_stderr(what);
    signals::write_stderr(b"; the process ends, committed domains are whole\n");
    signals::end_process()
}
