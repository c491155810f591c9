//! Events of the host that the driver has not been given yet.

use std::collections::VecDeque;

use vmsrs_protocol::event::{EVENT_DAMAGE, Event};

/// Maximum number of events that wait for the driver's buffers.
const PENDING_MAX: usize = 64;

/// Events that wait for the thread that serves the queues.
#[derive(Debug, Default)]
pub(super) struct Pending {
    events: VecDeque<Event>,
}

impl Pending {
    /// Adds an event; false if there are too many already. Damage is always reported: a guest
    /// cannot cause it, and there is at most one per page.
    pub(super) fn push(&mut self, event: Event) -> bool {
        let has_room = self.events.len() < PENDING_MAX || event.kind == EVENT_DAMAGE;
        if has_room {
            self.events.push_back(event);
        }
        has_room
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }
}
