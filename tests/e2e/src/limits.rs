//! How long the tests wait for an event before they take it for lost.
//!
//! None of these decides whether a behaviour holds: each test waits for the event itself. The limits only turn a hang
//! into a message, so they are many times what a busy machine takes.

use std::time::Duration;

/// Longest wait for one event, such as a report or a reply of the device, in a step of the guest.
pub const EVENT_LIMIT: Duration = Duration::from_secs(300);
