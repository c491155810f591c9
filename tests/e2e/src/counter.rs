//! A number at the root of a domain.

use anyhow::Result;
use vmsrs::{App, Domain, Error, Request};

use crate::limits::patient;

/// A domain whose root leads to a number.
#[derive(Clone, Copy)]
pub struct Counter {
    domain: &'static Domain,
}

impl Counter {
    /// Opens the domain; a request of its own sets the number to 0 the first time.
    ///
    /// # Errors
    ///
    /// When the domain cannot be opened or is held by another request for too long.
    pub fn open(app: &'static App, key: &str) -> Result<Self> {
        let domain = app.domain(key)?;
        if domain.root_address().is_null() {
            domain.run(|request| {
                let number = request.alloc(0u64)?;
                request.set_root(Some(number.into()))
            })?;
        }
        Ok(Self { domain })
    }

    /// The domain.
    pub fn domain(self) -> &'static Domain {
        self.domain
    }

    /// The number, as a request that holds the domain sees it.
    pub fn get(self) -> u64 {
        // SAFETY: the domain stays mapped, and its root leads to the number.
        unsafe { self.number().read_volatile() }
    }

    /// Sets the number; only for a request that holds the domain.
    pub fn set(self, value: u64) {
        // SAFETY: as in get(); a write by any other request faults.
        unsafe { self.number().write_volatile(value) };
    }

    /// Adds to the number; only for a request that holds the domain.
    pub fn add(self, value: u64) {
        self.set(self.get() + value);
    }

    /// Reads the number in a request of its own.
    ///
    /// # Errors
    ///
    /// When the request fails.
    pub fn read(self) -> Result<u64> {
        let read = |_: &Request| Ok::<_, Error>(self.get());
        Ok(self.domain.run_with(&patient(), read)?)
    }

    fn number(self) -> *mut u64 {
        self.domain.root_address().cast()
    }
}
