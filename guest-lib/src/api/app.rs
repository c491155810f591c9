//! Apps: the server program's share of the window.

use crate::api::domain::{Domain, DomainOptions};
use crate::error::Error;
use crate::os::clib;
use crate::os::modules;
use crate::run::invariant::Invariant;
use crate::shared::backend::Backend;
use crate::shared::device::{Device, Opened};
use crate::shared::pkru;
use crate::shared::unprotected::Unprotected;
use crate::thread::{evidence, fork, handler};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use vmsrs_protocol::ioctl::{DEVICE_PATH, IoctlInfo};
use vmsrs_protocol::{APP_BASE, APP_PAGES, KEY_MAX, MAX_APPS, NAME_MAX, PAGE_SIZE};

/// Bytes of address range of one app.
pub(crate) const APP_BYTES: u64 = APP_PAGES as u64 * PAGE_SIZE as u64;

/// What happens to memory when a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// There is no device. Errors are suppressed, locks released, defers run; but what the request
    /// wrote stays, and nobody is kept from writing where he should not.
    None,
    /// The driver and the host keep versions of every page.
    Full,
}

/// An app, open in this process for as long as it lives.
#[derive(Debug)]
pub struct App {
    name: Vec<u8>,
    backend: Box<dyn Backend>,
    domains: Mutex<HashMap<Vec<u8>, &'static Domain>>,
    invariant: Invariant,
}

/// Guards that an app is opened once.
static APPS: Mutex<Vec<&'static App>> = Mutex::new(Vec::new());

/// The same apps by number, for whoever cannot take a lock (allocator, child of a fork).
static BY_NUMBER: [AtomicPtr<App>; MAX_APPS as usize] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_APPS as usize];

impl App {
    /// Opens the app with that name (1 to 64 bytes), makes it if it is new. A name that is open
    /// already gives the same app.
    ///
    /// Without a device (`/dev/vmsrs`, or what `VMSRS_DEVICE` names; `none` for no device) the app
    /// works without protection, and a warning says so once.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Device`] (it is there but refuses), [`Error::Map`] (the app's
    /// addresses are taken), [`Error::System`].
    ///
    /// # Safety
    ///
    /// From now on a request of this app that fails is *cut short*: the frames of its closure are
    /// abandoned without running destructors. Code that runs in requests must bear that, at any
    /// instruction. It must not, for example, lend its locals to other threads (as
    /// [`std::thread::scope`] does), or pin them for others to point to. See "Abandoned frames" in
    /// the crate's documentation.
    pub unsafe fn open(name: &str) -> Result<&'static Self, Error> {
        // SAFETY: passed on to the caller.
        unsafe { Self::open_bytes(name.as_bytes()) }
    }

    /// Like [`App::open`], for names that are no UTF-8.
    ///
    /// # Errors
    ///
    /// As [`App::open`].
    ///
    /// # Safety
    ///
    /// As [`App::open`].
    pub unsafe fn open_bytes(name: &[u8]) -> Result<&'static Self, Error> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::Length {
                what: "the app's name",
                length: name.len(),
            });
        }
        if name.contains(&0) {
            return Err(Error::Argument("a zero byte in the app's name"));
        }
        let mut apps = APPS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(app) = apps.iter().find(|app| app.name == name) {
            return Ok(app);
        }
        let path = std::env::var_os("VMSRS_DEVICE").unwrap_or_else(|| OsString::from(DEVICE_PATH));
        let device = if path == "none" {
            Opened::Absent
        } else {
            Device::open(&PathBuf::from(&path), name)?
        };
        let backend: Box<dyn Backend> = match device {
            Opened::App(device) => device,
            Opened::Absent => {
                warn_unprotected(&path.to_string_lossy());
                Box::new(Unprotected::open(apps.len() as u32)?)
            }
        };
        Self::begin(&mut apps, name, backend)
    }

    /// An app of a test's own making, under a name that is not open yet. `backend` gets its number.
    #[cfg(test)]
    pub(crate) fn with_backend(
        name: &str,
        backend: impl FnOnce(u32) -> Box<dyn Backend>,
    ) -> &'static Self {
        let mut apps = APPS.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = backend(apps.len() as u32);
        Self::begin(&mut apps, name.as_bytes(), backend).unwrap()
    }

    fn begin(
        apps: &mut Vec<&'static Self>,
        name: &[u8],
        backend: Box<dyn Backend>,
    ) -> Result<&'static Self, Error> {
        let slot = BY_NUMBER
            .get(backend.number() as usize)
            .ok_or(Error::Argument("the app's number"))?;
        clib::install();
        handler::install()?;
        fork::install();
        evidence::install();
        modules::refresh();
        if backend.protects() {
            pkru::install();
        }
        let app: &'static Self = Box::leak(Box::new(Self {
            name: name.to_vec(),
            backend,
            domains: Mutex::default(),
            invariant: Invariant::default(),
        }));
        slot.store(std::ptr::from_ref(app).cast_mut(), Ordering::Release);
        apps.push(app);
        Ok(app)
    }

    /// Opens the domain with that key (1 to 64 bytes of any value), makes it if it is new. A key
    /// that is open already gives the same domain.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Layout`], [`Error::OutOfMemory`] (the window is full),
    /// [`Error::Damaged`], [`Error::System`].
    pub fn domain(&'static self, key: impl AsRef<[u8]>) -> Result<&'static Domain, Error> {
        self.domain_with(key, DomainOptions::default())
    }

    /// Like [`App::domain`], with options. For a domain that is open already in this process they are
    /// ignored.
    ///
    /// # Errors
    ///
    /// As [`App::domain`]; [`Error::OutOfMemory`] also when the window has no room for the mirror.
    pub fn domain_with(
        &'static self,
        key: impl AsRef<[u8]>,
        options: DomainOptions,
    ) -> Result<&'static Domain, Error> {
        let key = key.as_ref();
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Error::Length {
                what: "the domain's key",
                length: key.len(),
            });
        }
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = domains.get(key) {
            return Ok(domain);
        }
        let domain: &'static Domain = Box::leak(Box::new(Domain::open(self, key, options)?));
        domains.insert(key.to_vec(), domain);
        Ok(domain)
    }

    /// What happens to memory when a request fails.
    #[must_use]
    pub fn protection(&self) -> Protection {
        if self.backend.protects() {
            Protection::Full
        } else {
            Protection::None
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The driver's state; all zero without protection.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn info(&self) -> Result<IoctlInfo, Error> {
        self.backend
            .info()
            .map_err(Error::system("reading the driver's state"))
    }

    /// Waits until everything committed so far is sealed by the host.
    ///
    /// # Errors
    ///
    /// [`Error::Unsealed`] when the host does not answer in time, [`Error::System`].
    pub fn flush(&self) -> Result<(), Error> {
        self.backend.flush().map_err(|error| {
            if error.raw_os_error() == Some(libc::ETIMEDOUT) {
                Error::Unsealed
            } else {
                Error::system("flushing")(error)
            }
        })
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn invariant(&self) -> &Invariant {
        &self.invariant
    }

    /// Address of page 0.
    pub(crate) fn base(&self) -> u64 {
        APP_BASE + u64::from(self.backend.number()) * APP_BYTES
    }

    /// The app in whose range the address lies, if it is open.
    pub(crate) fn at(address: u64) -> Option<&'static Self> {
        let number = address.checked_sub(APP_BASE)? / APP_BYTES;
        let slot = BY_NUMBER.get(usize::try_from(number).ok()?)?;
        // SAFETY: null, or an app that lives for ever.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    }

    /// All open apps.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        BY_NUMBER.iter().filter_map(|slot| {
            // SAFETY: null, or an app that lives for ever.
            unsafe { slot.load(Ordering::Acquire).as_ref() }
        })
    }
}

fn warn_unprotected(path: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::warn!("no VMSRS device at {path}: running without protection");
        eprintln!(
            "vmsrs: no device at {path}: running without protection; \
             errors are suppressed, but memory is not restored"
        );
    });
}
