//! States that no request has.

use super::State;
use crate::error::Error;
use crate::os::region::Region;
use std::mem::size_of;
use std::sync::{Mutex, PoisonError};

/// States that no request has.
static POOL: Mutex<Vec<&'static State>> = Mutex::new(Vec::new());

impl State {
    /// A state that no request has.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub(crate) fn take() -> Result<&'static Self, Error> {
        let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(state) = pooled {
            return Ok(state);
        }
        let memory = Region::new(size_of::<Self>())?;
        let place = memory.place().cast::<Self>();
        std::mem::forget(memory);
        // SAFETY: fresh memory of the right size, page-aligned, that is never given back.
        unsafe {
            place.write(Self::new());
            Ok(place.as_ref())
        }
    }

    /// Gives a state back. If a thread has ended in the middle of the request, others may still work for it and
    /// have its key open: then neither is reused.
    pub(crate) fn give_back(&'static self) {
        if self.tag() != 0 {
            return;
        }
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(self);
    }
}
