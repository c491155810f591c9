use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use proptest::prelude::*;

use super::{Broken, PAGE, Pages};
use crate::host_memory::{HostPages, memory_file};

/// A page, and one without memory behind it: an access there raises SIGBUS, as to broken memory.
struct Pair {
    start: *mut u8,
    /// Without it the pages are gone from the mapping.
    _file: File,
}

impl Pair {
    fn new() -> Self {
        let file = memory_file(c"test", 2 * PAGE as u64, HostPages::Standard, false).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the system has room.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        file.set_len(PAGE as u64).unwrap();
        Self {
            start: start.cast(),
            _file: file,
        }
    }

    fn good(&self) -> *mut u8 {
        self.start
    }

    fn broken(&self) -> *mut u8 {
        // SAFETY: the second page of the mapping.
        unsafe { self.start.add(PAGE) }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.start.cast(), 2 * PAGE) };
    }
}

/// With the routines for each kind of CPU that this one can be.
fn all_pages() -> Vec<Pages> {
    let best = Pages::new().unwrap();
    let all = [(false, false), (true, false), (false, true), (true, true)];
    let possible = |&(wide, crc32c): &(bool, bool)| wide <= best.wide && crc32c <= best.crc32c;
    let pages = |(wide, crc32c)| Pages { wide, crc32c };
    all.into_iter().filter(possible).map(pages).collect()
}

#[test]
fn every_access_to_broken_memory_is_an_error() {
    let pair = Pair::new();
    let (good, broken) = (pair.good(), pair.broken());
    for pages in all_pages() {
        // SAFETY: both pages are mapped, and there is no reference to them.
        let results = unsafe {
            [
                pages.copy(broken, good),
                pages.copy(good, broken),
                pages.clear(broken),
                pages.crc32c(broken).map(drop),
            ]
        };
        for (number, result) in results.into_iter().enumerate() {
            let Broken { address, .. } = result.unwrap_err();
            assert_eq!(address & !(PAGE - 1), broken as usize, "access {number}");
        }
        // SAFETY: as above.
        let whole = unsafe { (pages.clear(good), pages.crc32c(good)) };
        assert_eq!(whole, (Ok(()), Ok(crc32c::crc32c(&[0; PAGE]))));
    }
}

#[test]
fn a_page_that_breaks_in_the_middle_is_an_error() {
    let pair = Pair::new();
    for pages in all_pages() {
        for distance in [1, 8, 100, PAGE - 1] {
            // SAFETY: all of it is mapped, and there is no reference to it.
            let sum = unsafe { pages.crc32c(pair.good().add(distance)) };
            assert_eq!(sum.unwrap_err().address & !7, pair.broken() as usize & !7);
        }
    }
}

#[test]
fn threads_meet_broken_memory_independently() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (pair, other) = (Pair::new(), Pair::new());
                let pages = Pages::new().unwrap();
                for _ in 0..1000 {
                    // SAFETY: the pages are mapped, and there is no reference to them.
                    let results = unsafe {
                        (
                            pages.copy(other.good(), pair.good()),
                            pages.copy(other.good(), pair.broken()),
                        )
                    };
                    assert_eq!(results.0, Ok(()));
                    let address = results.1.unwrap_err().address;
                    assert_eq!(address & !(PAGE - 1), pair.broken() as usize);
                }
            });
        }
    });
}

/// The signal that ends a process which does this.
fn end_of<T>(does: impl FnOnce() -> T) -> i32 {
    // SAFETY: the child calls nothing that needs another thread, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        std::hint::black_box(does());
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's own.
    let ended = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(ended, child, "{}", io::Error::last_os_error());
    match libc::WIFSIGNALED(status) {
        true => libc::WTERMSIG(status),
        false => 0,
    }
}

#[test]
fn any_other_sigbus_ends_the_process() {
    let pair = Pair::new();
    let pages = Pages::new().unwrap();
    let (good, broken) = (pair.good(), pair.broken());
    let ends = [
        // SAFETY: the page is mapped; that it has no memory is what is tested.
        end_of(|| unsafe { broken.read_volatile() }),
        // SAFETY: changes no memory.
        end_of(|| unsafe { libc::raise(libc::SIGBUS) }),
        // SAFETY: as above.
        end_of(|| unsafe { pages.copy(good, broken) }),
    ];
    assert_eq!(ends, [libc::SIGBUS, libc::SIGBUS, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn routines_do_what_they_say_to_one_page(
        content in prop::collection::vec(any::<u8>(), PAGE + 64),
        from in 0usize..64,
        to in 0usize..64,
    ) {
        let page = &content[from..from + PAGE];
        for pages in all_pages() {
            // SAFETY: the page is a part of the vector.
            let sum = unsafe { pages.crc32c(page.as_ptr()) };
            prop_assert_eq!(sum, Ok(crc32c::crc32c(page)));
            let mut target = vec![0xa5; PAGE + 64];
            // SAFETY: so is this, of another one.
            let copied = unsafe { pages.copy(target.as_mut_ptr().add(to), page.as_ptr()) };
            prop_assert_eq!(copied, Ok(()));
            prop_assert_eq!(&target[to..to + PAGE], page);
            // SAFETY: as above.
            let cleared = unsafe { pages.clear(target.as_mut_ptr().add(to)) };
            prop_assert_eq!(cleared, Ok(()));
            let is_right = |(at, &byte): (usize, &u8)| {
                byte == if (to..to + PAGE).contains(&at) { 0 } else { 0xa5 }
            };
            prop_assert!(target.iter().enumerate().all(is_right));
        }
    }
}
