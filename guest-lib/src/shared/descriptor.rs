//! The descriptor of the driver's file, where stray calls of `close` do not find it, and what becomes of it if one does.
//!
//! A descriptor that is closed twice has a number that was somebody's before. The library's are higher than those that a
//! program gets by itself, and there are two of them. A look at one costs a system call, so it is left out where no other
//! file can take a call for its own; a call that is not answered by the driver is made once more, after a look (`device.rs`).
//! What a stray `close` has taken is made again, of the other one or by opening the device once more; so it costs nobody
//! anything.

use crate::os::file::{Identity, close_if, identity};
use crate::os::lock::Lock;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use vmsrs_protocol::MAX_APPS;

/// Numbers of each file, one to be used and one to spare.
const EACH: usize = 2;

/// The library's descriptors that are open: -1 for none. One table, so that a number is in it once.
static NUMBERS: [AtomicI32; MAX_APPS as usize * EACH] =
    [const { AtomicI32::new(NONE) }; MAX_APPS as usize * EACH];
const NONE: RawFd = -1;

/// Files whose descriptor is being made again.
static REPAIR: Lock<()> = Lock::new(());

/// How many descriptors were made again.
static REPAIRED: AtomicU64 = AtomicU64::new(0);

/// Descriptors of the library that stray calls of `close` have taken, and that were made again.
pub(crate) fn repaired() -> u64 {
    REPAIRED.load(Ordering::Relaxed)
}

/// Numbers that most programs may use; above them a table of descriptors takes more of the kernel's memory.
const USUAL: libc::rlim_t = 1024;

/// The first number that the library asks for.
fn first_number() -> RawFd {
    let mut limit = libc::rlimit {
        rlim_cur: USUAL,
        rlim_max: USUAL,
    };
    // SAFETY: writes the limit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let limit = limit.rlim_cur.min(USUAL);
    // Below a small limit there is no room for all apps.
    limit
        .saturating_sub(NUMBERS.len() as u64)
        .max(limit / 4 * 3) as RawFd
}

/// A copy of a descriptor with a high number, or -1. Async-signal-safe.
fn copy(fd: RawFd) -> RawFd {
    // SAFETY: makes a descriptor.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first_number()) };
    if high < 0 {
        // SAFETY: as above.
        return unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    }
    high
}

/// Says whether a descriptor, which is one of the device, is of a file of that app.
pub(crate) type IsOfApp = fn(RawFd, u32) -> bool;

/// The descriptors of one app's file. They stay open as long as the process.
#[derive(Debug)]
pub(crate) struct Descriptor {
    app: u32,
    identity: Identity,
    is_of_app: IsOfApp,
}

impl Descriptor {
    /// Takes an open descriptor of the file of the app with that number.
    ///
    /// # Errors
    ///
    /// That of `fstat`, and `EINVAL` for a number out of range; the descriptor is still the caller's then.
    pub(crate) fn new(app: u32, fd: RawFd, is_of_app: IsOfApp) -> io::Result<Self> {
        if app >= MAX_APPS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let identity = identity(fd).ok_or_else(io::Error::last_os_error)?;
        let new = Self {
            app,
            identity,
            is_of_app,
        };
        new.replace(fd);
        Ok(new)
    }

    /// In the child of a fork: takes a descriptor of its own file instead of its parent's, which are closed.
    /// Async-signal-safe.
    pub(crate) fn replace_all(&self, fd: RawFd) {
        for which in 0..EACH {
            // The child's copy of its parent's.
            self.close_ours(self.number(which).swap(NONE, Ordering::Relaxed));
        }
        self.replace(fd);
    }

    /// Whether a call with `fd` that gave `error` may not have met the file, but another one or none.
    pub(crate) fn has_missed(&self, fd: RawFd, error: &io::Error) -> bool {
        // The number may be the file's again by now. These are the answers of other files and of none; the driver gives none of
        // them but EINVAL, to arguments that it refuses a second time as well.
        let is_anothers = matches!(
            error.raw_os_error(),
            Some(libc::EBADF | libc::ENOTTY | libc::EINVAL | libc::ESPIPE)
        );
        is_anothers || !self.is_still(fd)
    }

    /// Whether `fd` is the descriptor, and the file's.
    pub(crate) fn is_still(&self, fd: RawFd) -> bool {
        fd == self.unchecked() && self.is_ours(fd)
    }

    /// Takes a descriptor of the file, moved to high numbers. Async-signal-safe.
    fn replace(&self, fd: RawFd) {
        let copies = [self.copy(fd), self.copy(fd)];
        if copies[0] == NONE {
            // No more descriptors: it stays where it is.
            self.put(0, fd);
            return;
        }
        self.close_ours(fd);
        self.put(0, copies[0]);
        self.put(1, copies[1]);
    }

    /// A copy of a descriptor, or `NONE`: the number may be another file's since it was looked at. Async-signal-safe.
    fn copy(&self, fd: RawFd) -> RawFd {
        self.checked_copy(fd, copy(fd))
    }

    /// The copy of `fd` that was just made, or `NONE`.
    fn checked_copy(&self, fd: RawFd, copy: RawFd) -> RawFd {
        if copy < 0 || self.is_ours(copy) {
            return copy;
        }
        // If `fd` is another file's, the copy is of that file, which nobody has asked to be kept open. If it is not, a stray call
        // has taken the copy and its number is another's.
        if let Some(file) = identity(fd) {
            close_if(copy, file);
        }
        NONE
    }

    /// Closes a descriptor of the device that is not the file's, unless it is another's by now. Async-signal-safe.
    pub(crate) fn close_opened(&self, fd: RawFd) {
        close_if(fd, self.identity);
    }

    /// Closes a descriptor that was the file's, unless it is another's by now. Async-signal-safe.
    fn close_ours(&self, fd: RawFd) {
        if self.is_ours(fd) {
            // SAFETY: the file's, and nothing else uses it.
            unsafe { libc::close(fd) };
        }
    }

    /// Closes them, for the last time.
    #[cfg(test)]
    fn close(&self) {
        for number in [0, 1].map(|which| self.number(which).swap(NONE, Ordering::Relaxed)) {
            // SAFETY: the library's, as far as it knows.
            unsafe { libc::close(number) };
        }
    }

    fn number(&self, which: usize) -> &AtomicI32 {
        &NUMBERS[self.app as usize * EACH + which]
    }

    /// Notes a descriptor that was just made. If the number is another's too, that was closed.
    fn put(&self, which: usize, fd: RawFd) {
        for number in NUMBERS.iter().filter(|_| fd != NONE) {
            let _ = number.compare_exchange(fd, NONE, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.number(which).store(fd, Ordering::Relaxed);
    }

    fn is_ours(&self, fd: RawFd) -> bool {
        fd != NONE && identity(fd) == Some(self.identity) && (self.is_of_app)(fd, self.app)
    }

    /// The descriptor, which may be another file's by now.
    pub(crate) fn unchecked(&self) -> RawFd {
        self.number(0).load(Ordering::Relaxed)
    }

    /// A descriptor that is the file's at this moment. `open` opens the file again, for the case that both are lost. One that
    /// alone is lost is made again, too.
    ///
    /// # Errors
    ///
    /// That of `open`.
    pub(crate) fn get(&self, open: impl FnOnce() -> io::Result<RawFd>) -> io::Result<RawFd> {
        let [fd, spare] = [0, 1].map(|which| self.number(which).load(Ordering::Relaxed));
        if self.is_ours(fd) && self.is_ours(spare) {
            return Ok(fd);
        }
        self.repair(open)
    }

    #[cold]
    fn repair(&self, open: impl FnOnce() -> io::Result<RawFd>) -> io::Result<RawFd> {
        REPAIR.with(|()| {
            let found = [0, 1].map(|which| self.number(which).load(Ordering::Relaxed));
            let [first, spare] = found.map(|fd| self.is_ours(fd).then_some(fd));
            // The numbers of those that are lost may be other files' by now, and are not closed.
            match (first, spare) {
                // By another thread.
                (Some(first), Some(_)) => return Ok(first),
                (Some(first), None) => self.put(1, self.copy(first)),
                (None, Some(spare)) => {
                    self.put(0, spare);
                    self.put(1, self.copy(spare));
                }
                (None, None) => {
                    self.number(0).store(NONE, Ordering::Relaxed);
                    self.number(1).store(NONE, Ordering::Relaxed);
                    self.replace(open()?);
                }
            }
            // A spare that there was no room for is not counted.
            if first.is_none() || found[1] != NONE {
                REPAIRED.fetch_add(1, Ordering::Relaxed);
            }
            Ok(self.number(0).load(Ordering::Relaxed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    /// Apps of these tests alone; a file each.
    const APPS: [u32; 5] = [
        MAX_APPS - 1,
        MAX_APPS - 2,
        MAX_APPS - 3,
        MAX_APPS - 5,
        MAX_APPS - 6,
    ];

    fn file() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().unwrap()
    }

    fn open(file: &tempfile::NamedTempFile) -> RawFd {
        file.reopen().unwrap().into_raw_fd()
    }

    /// All files are of all apps.
    fn all(_: RawFd, _: u32) -> bool {
        true
    }

    fn never() -> io::Result<RawFd> {
        panic!("the spare is there");
    }

    /// As a stray call, or one with a number that was closed before.
    fn stray_close(fd: RawFd) {
        // SAFETY: it is not; that is the test.
        unsafe { libc::close(fd) };
    }

    #[test]
    fn a_stray_close_takes_nothing_that_is_not_made_again() {
        let file = file();
        let low = open(&file);
        let descriptor = Descriptor::new(APPS[0], low, all).unwrap();
        let fd = descriptor.get(never).unwrap();
        assert!(fd > low && fd >= first_number() && identity(low).is_none());
        let before = repaired();
        stray_close(fd);
        let again = descriptor.get(never).unwrap();
        assert!(descriptor.is_ours(again));
        // The number is another file's: that gets no call, and stays open.
        // SAFETY: makes a descriptor with that number.
        let other = unsafe { libc::dup2(libc::STDERR_FILENO, again) };
        let next = descriptor.get(never).unwrap();
        assert!(next != other && descriptor.is_ours(next) && identity(other).is_some());
        stray_close(other);
        // The spare alone.
        let spare = descriptor.number(1).load(Ordering::Relaxed);
        stray_close(spare);
        assert_eq!(descriptor.get(never).unwrap(), next);
        assert!(descriptor.is_ours(descriptor.number(1).load(Ordering::Relaxed)));
        // Both.
        let spare = descriptor.number(1).load(Ordering::Relaxed);
        assert!(spare != NONE && spare != next);
        stray_close(next);
        stray_close(spare);
        let last = descriptor.get(|| Ok(open(&file))).unwrap();
        assert!(descriptor.is_ours(last) && repaired() >= before + 4);
        descriptor.close();
    }

    #[test]
    fn an_error_of_the_file_itself_is_no_miss() {
        let file = file();
        let descriptor = Descriptor::new(APPS[3], open(&file), all).unwrap();
        let fd = descriptor.get(never).unwrap();
        let error = io::Error::from_raw_os_error;
        assert!(!descriptor.has_missed(fd, &error(libc::ESTALE)));
        // Its number was closed, or another file's, and is given back meanwhile.
        for another in [libc::EBADF, libc::ENOTTY, libc::EINVAL, libc::ESPIPE] {
            assert!(descriptor.has_missed(fd, &error(another)));
        }
        // Another thread has replaced it.
        stray_close(fd);
        let next = descriptor.get(never).unwrap();
        assert!(next != fd && descriptor.has_missed(fd, &error(libc::ESTALE)));
        assert!(!descriptor.is_still(fd) && descriptor.is_still(next));
        descriptor.close();
    }

    #[test]
    fn another_file_with_the_number_is_neither_copied_nor_closed() {
        let (file, other) = (file(), file());
        let descriptor = Descriptor::new(APPS[4], open(&file), all).unwrap();
        let another = open(&other);
        // SAFETY: makes a descriptor.
        let copy = unsafe { libc::fcntl(another, libc::F_DUPFD_CLOEXEC, 700) };
        assert_eq!(descriptor.checked_copy(another, copy), NONE);
        assert!(identity(copy).is_none());
        // What was copied is the file's; the copy's number is another's since.
        let ours = descriptor.get(never).unwrap();
        assert_eq!(descriptor.checked_copy(ours, another), NONE);
        descriptor.close_ours(another);
        assert!(identity(another).is_some());
        stray_close(another);
        descriptor.close();
    }

    #[test]
    fn a_number_that_another_app_gets_is_its_own() {
        let file = file();
        let first = Descriptor::new(APPS[1], open(&file), all).unwrap();
        let lost = first.get(never).unwrap();
        let again = open(&file);
        // SAFETY: closes the first one's, as a stray call does, and takes its number.
        let taken = unsafe { libc::dup2(again, lost) };
        let second = Descriptor::new(APPS[2], again, all).unwrap();
        second.put(0, taken);
        assert_eq!(second.get(never).unwrap(), taken);
        assert_ne!(first.get(never).unwrap(), taken);
        first.close();
        second.close();
    }
}
