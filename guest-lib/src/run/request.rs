//! The type of a running request, as its function gets it.

use super::left::working;
use crate::error::Error;
use crate::state::domain::Domain;
use crate::thread::{Phase, Thread};
use std::fmt;
use std::mem::offset_of;
use std::ptr;

/// A running request, as one of its threads has it: on that thread, until its function returns.
pub struct Request(Thread);

// Not repr(transparent): in the C header this is an opaque type.
const _: () = assert!(
    offset_of!(Request, 0) == 0 && size_of::<Request>() == size_of::<Thread>(),
    "a request is its thread"
);

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("domain", &self.0.domain())
            .finish_non_exhaustive()
    }
}

impl Request {
    /// The thread as its request's function sees it. C code can keep the pointer after the request's end:
    /// the memory is the thread's, so calls with it still find that there is no request.
    #[inline]
    pub(crate) fn of(thread: &Thread) -> &Self {
        // SAFETY: a thread and nothing else, by the assertion above.
        unsafe { &*ptr::from_ref(thread).cast() }
    }

    /// The thread, if this is its running request.
    pub(crate) fn thread(&self) -> Result<&'static Thread, Error> {
        working()
            .filter(|thread| {
                ptr::eq(*thread, &raw const self.0) && thread.phase() == Phase::Running
            })
            .ok_or(Error::NotInRequest)
    }

    /// The thread, whether or not it still runs this request.
    pub(crate) fn any_thread(&self) -> &Thread {
        &self.0
    }

    /// The domain that the request was begun with.
    ///
    /// # Panics
    ///
    /// When the request is over, which only a copy smuggled out of its function can see.
    #[must_use]
    pub fn domain(&self) -> &'static Domain {
        self.0.domain().expect("the request is running")
    }
}
