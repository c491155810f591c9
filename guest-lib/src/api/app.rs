//! Apps: the server program's share of the window.

use super::domain::DomainOptions;
use crate::error::Error;
use crate::os::lock::Lock;
use crate::os::{alarm, clib, modules, signals, streams};
use crate::run::aside;
use crate::run::left::{end_left, outside};
use crate::shared::backend::Backend;
use crate::shared::device::{Device, Opened};
use crate::shared::pkru;
use crate::shared::unprotected::Unprotected;
use crate::state::budget::Budget;
use crate::state::domain::{App, Domain};
use crate::thread::{self, evidence, fork, handler, reserve};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use vmsrs_protocol::control::DOMAIN_MIRROR;
use vmsrs_protocol::ioctl::{DEVICE_PATH, IoctlInfo};
use vmsrs_protocol::{KEY_MAX, NAME_MAX};

/// What happens to memory when a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// There is no device. Errors are suppressed, locks released, defers run; but what the request
    /// wrote stays, and writes to other domains are not stopped.
    None,
    /// The driver and the host keep versions of every page.
    Full,
}

/// Guards that an app is opened once. The driver is called under it, which waits for the host for some seconds at most.
static APPS: Lock<Vec<&'static App>> = Lock::new(Vec::new());

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
    /// addresses are taken), [`Error::Sanitizer`], [`Error::System`].
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

    /// Like [`App::open`], for names that are not UTF-8.
    ///
    /// # Errors
    ///
    /// As [`App::open`].
    ///
    /// # Safety
    ///
    /// As [`App::open`].
    pub unsafe fn open_bytes(name: &[u8]) -> Result<&'static Self, Error> {
        end_left();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::Length {
                what: "the app's name",
                length: name.len(),
            });
        }
        if name.contains(&0) {
            return Err(Error::Argument("the app's name contains a zero byte"));
        }
        // Copied first: the caller's memory is not read under the lock.
        let name = name.to_vec();
        let path = std::env::var_os("VMSRS_DEVICE").unwrap_or_else(|| OsString::from(DEVICE_PATH));
        let app = APPS.with(|apps| {
            if let Some(app) = apps.iter().find(|app| app.name() == name) {
                return Ok(*app);
            }
            let device = if path == "none" {
                Opened::Absent
            } else {
                Device::open(&PathBuf::from(&path), &name)?
            };
            let backend: Box<dyn Backend> = match device {
                Opened::App(device) => device,
                Opened::Absent => Box::new(Unprotected::open(apps.len() as u32)?),
            };
            Self::begin(apps, &name, backend)
        })?;
        if !app.protects() {
            warn_unprotected(&path.to_string_lossy());
        }
        Ok(app)
    }

    /// An app of a test's own making, under a name that is not open yet. `backend` gets its number.
    #[cfg(test)]
    pub(crate) fn with_backend(
        name: &str,
        backend: impl FnOnce(u32) -> Box<dyn Backend>,
    ) -> &'static Self {
        APPS.with(|apps| Self::begin(apps, name.as_bytes(), backend(apps.len() as u32)))
            .unwrap()
    }

    /// Under the lock. The first app of a process is opened outside of requests, so what is done once is not cut short.
    fn begin(
        apps: &mut Vec<&'static Self>,
        name: &[u8],
        backend: Box<dyn Backend>,
    ) -> Result<&'static Self, Error> {
        clib::install();
        alarm::install()?;
        aside::install()?;
        streams::install();
        let _ = reserve::fill();
        handler::install()?;
        thread::install(end_left)?;
        fork::install();
        evidence::install();
        modules::refresh();
        if backend.protects() {
            pkru::install();
        }
        let app = Self::new(name, backend)?;
        apps.push(app);
        Ok(app)
    }

    /// Opens the domain with that key (1 to 64 bytes of any value), makes it if it is new. A key
    /// that is open already gives the same domain.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Layout`], [`Error::NoRoom`] (the window is full),
    /// [`Error::Damaged`], [`Error::System`].
    pub fn domain(&'static self, key: impl AsRef<[u8]>) -> Result<&'static Domain, Error> {
        self.domain_with(key, DomainOptions::default())
    }

    /// Like [`App::domain`], with options. For a domain that is open already in this process they are
    /// ignored.
    ///
    /// # Errors
    ///
    /// As [`App::domain`]; [`Error::NoRoom`] also when the window has no room for the mirror.
    pub fn domain_with(
        &'static self,
        key: impl AsRef<[u8]>,
        options: DomainOptions,
    ) -> Result<&'static Domain, Error> {
        end_left();
        let key = key.as_ref();
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Error::Length {
                what: "the domain's key",
                length: key.len(),
            });
        }
        let flags = if options.mirror { DOMAIN_MIRROR } else { 0 };
        self.find_domain(key, flags)
    }

    /// What happens to memory when a request fails.
    #[must_use]
    pub fn protection(&self) -> Protection {
        end_left();
        if self.backend().protects() {
            Protection::Full
        } else {
            Protection::None
        }
    }

    /// The driver's state; all zero without protection.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn info(&self) -> Result<IoctlInfo, Error> {
        end_left();
        self.backend()
            .info()
            .map_err(Error::system("reading the driver's state"))
    }

    /// Waits until everything committed so far is sealed by the host.
    ///
    /// # Errors
    ///
    /// [`Error::Unsealed`] when the host does not answer in time, [`Error::System`].
    pub fn flush(&self) -> Result<(), Error> {
        end_left();
        self.backend().flush().map_err(|error| {
            if error.raw_os_error() == Some(libc::ETIMEDOUT) {
                Error::Unsealed
            } else {
                Error::system("flushing")(error)
            }
        })
    }

    /// Sets how many requests of each domain of the app may fail within a time; a domain with more is refused for a while
    /// ([`Error::Quarantined`]), and an incident of its own says so. It counts the requests that were begun with the domain, in this
    /// process. Off by default.
    ///
    /// # Errors
    ///
    /// [`Error::Nested`] inside a request or a defer.
    pub fn set_budget(&self, budget: Budget) -> Result<(), Error> {
        outside()?;
        self.budget().set(budget);
        Ok(())
    }

    /// Registers a check of every domain of the app, once in a process. It is called before anything
    /// of a domain is committed (at the end of a request, by [`crate::Request::commit`] and by
    /// [`crate::Entered::leave`]), in the request, for each domain that is to be committed with
    /// something written by the request. If it gives an error, panics, or dies of any other error,
    /// the request fails with [`crate::Kind::Invariant`] and the message.
    ///
    /// The check should only read. What it costs, every commit costs.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the app has one; [`Error::Nested`] inside a request or a defer.
    pub fn set_invariant(
        &self,
        check: impl Fn(&'static Domain) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        outside()?;
        self.invariant().set(Box::new(check))
    }
}

/// Says it once. Not under a lock: the log is the server's.
fn warn_unprotected(path: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    log::warn!("no VMSRS device at {path}: running without protection");
    let line = format!(
        "vmsrs: no device at {path}: running without protection; \
         errors are suppressed, but memory is not restored\n"
    );
    signals::write_stderr(line.as_bytes());
}
