//! How long the tests wait for an event before they take it for lost.
//!
//! No limit decides whether a behaviour holds: tests wait for the event itself. A limit only turns a hang into a
//! message, so each is many times what a busy machine takes.

use std::time::Duration;

use vmsrs::Options;

/// Longest boot of a guest; it takes about 10 s in the nested test-bed.
pub const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Longest step; the longest takes about 10 s in the nested test-bed. It is longer than what a step waits itself.
pub const STEP_LIMIT: Duration = Duration::from_secs(900);
/// Longest way of a report or of evidence from the driver to the host.
pub const REPORT_LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for one event within a step of the guest.
pub const EVENT_LIMIT: Duration = Duration::from_secs(300);

/// Options of a request that must get the locks it waits for, however busy the machine is.
pub fn patient() -> Options {
    Options {
        lock_timeout: Some(EVENT_LIMIT),
        ..Options::default()
    }
}
