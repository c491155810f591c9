//! Tickets on their way through C.

use super::members::CTicket;
use crate::Ticket;
use crate::state::State;
use crate::state::domain::Domain;
use std::ptr;

impl Ticket {
    pub(super) fn to_c(self) -> CTicket {
        CTicket {
            state: ptr::from_ref(self.state).cast(),
            domain: ptr::from_ref(self.domain).cast(),
            tag: self.tag,
            forks: self.forks,
            reserved: 0,
        }
    }

    /// The ticket again; `None` if it holds none.
    ///
    /// # Safety
    ///
    /// [`Ticket::to_c`] gave it, or it is all zero.
    pub(crate) unsafe fn from_c(ticket: &CTicket) -> Option<Self> {
        // SAFETY: null, or a value that lives forever, by contract.
        let (state, domain) = unsafe {
            (
                ticket.state.cast::<State>().as_ref()?,
                ticket.domain.cast::<Domain>().as_ref()?,
            )
        };
        Some(Self {
            state,
            tag: ticket.tag,
            domain,
            forks: ticket.forks,
        })
    }
}
