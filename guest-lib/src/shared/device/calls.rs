//! Calls of the driver, also when a stray `close` has taken its descriptor, or another file has that number now.

use super::Device;
use super::file::{another_files, call, open_app, open_file};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

/// Times that a call is made, if a descriptor is lost before each.
pub(super) const TRIES: u32 = 4;

impl Device {
    /// A descriptor that is the driver's file's at this moment. Mends what is lost, of two descriptors.
    pub(super) fn fd(&self) -> io::Result<RawFd> {
        self.descriptor.get(|| self.open_again())
    }

    /// Opens the app once more. What is mapped keeps the driver's file from before, to which this one is as good: the
    /// driver knows threads and requests by the app.
    pub(super) fn open_again(&self) -> io::Result<RawFd> {
        let fd = open_file(&self.path)?;
        let noted = self.noted.load(Ordering::SeqCst);
        let same = open_app(fd, &self.name, noted).and_then(|app| {
            if app.base == self.app.base {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESTALE))
            }
        });
        same.map(|()| fd)
            .inspect_err(|_| self.descriptor.close_opened(fd))
    }

    /// Calls the driver. The descriptor is looked at only when the answer is not the driver's, or an error: no other file
    /// knows the call, and another app's refuses it, as the caller's request is not its own.
    ///
    /// # Safety
    ///
    /// `argument` is what the call takes, one that names the caller's request or changes nothing.
    pub(super) unsafe fn call<T>(&self, number: u32, argument: *mut T) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        self.call_by(&|fd| unsafe { call(fd, number, argument) })
    }

    /// The same for a call that `make` makes by a descriptor.
    #[inline]
    pub(super) fn call_by(&self, make: &dyn Fn(RawFd) -> io::Result<u32>) -> io::Result<()> {
        let fd = self.descriptor.unchecked();
        match make(fd) {
            Ok(app) if app == self.app.app => Ok(()),
            outcome => self.call_again(fd, outcome, make),
        }
    }

    /// Calls the driver once more, unless the call that gave `outcome` was for the right file.
    #[cold]
    fn call_again(
        &self,
        mut fd: RawFd,
        mut outcome: io::Result<u32>,
        make: &dyn Fn(RawFd) -> io::Result<u32>,
    ) -> io::Result<()> {
        for _ in 1..TRIES {
            match outcome {
                Ok(app) if app == self.app.app => return Ok(()),
                Err(error) if !self.descriptor.has_missed(fd, &error) => return Err(error),
                _ => {}
            }
            outcome = self.call_mended(&mut fd, make);
        }
        match outcome? {
            app if app == self.app.app => Ok(()),
            _ => Err(another_files()),
        }
    }

    /// Calls the driver by the descriptor that is its file's, and notes that in `fd`.
    ///
    /// # Errors
    ///
    /// As [`call`], or why the device cannot be opened again: a file that is just being opened can be closed, too.
    fn call_mended(
        &self,
        fd: &mut RawFd,
        make: &dyn Fn(RawFd) -> io::Result<u32>,
    ) -> io::Result<u32> {
        *fd = self.fd()?;
        make(*fd)
    }

    /// Calls the driver, after a look at the descriptor: another file, a console or another app's, might take the call for its
    /// own. For calls that are rare.
    ///
    /// # Safety
    ///
    /// `argument` is what the call takes.
    pub(super) unsafe fn call_checked<T>(&self, number: u32, argument: *mut T) -> io::Result<()> {
        let mut fd = -1;
        // SAFETY: passed on to the caller.
        let make = |fd| unsafe { call(fd, number, argument) };
        let outcome = self.call_mended(&mut fd, &make);
        self.call_again(fd, outcome, &make)
    }
}
