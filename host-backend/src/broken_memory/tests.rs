use std::arch::x86_64::*;
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
    let all = (0..8).map(|bits| Pages {
        wide: bits & 1 != 0,
        crc32c: bits & 2 != 0,
        vaes: bits & 4 != 0,
    });
    let possible = |pages: &Pages| {
        pages.wide <= best.wide && pages.crc32c <= best.crc32c && pages.vaes <= best.vaes
    };
    all.filter(possible).collect()
}

/// The checksum of a page, computed in another way.
fn expected_sum(pages: Pages, page: &[u8]) -> u64 {
    match pages.vaes {
        // SAFETY: the CPU has AES if it has that of its wider registers.
        true => unsafe { sum_by_aes(page) },
        false => crc32c::crc32c(page).into(),
    }
}

/// Sixteen sums, then one of them, with the instructions for registers of 16 bytes.
#[target_feature(enable = "aes")]
fn sum_by_aes(page: &[u8]) -> u64 {
    let load = |bytes: &[u8]| {
        let half = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        _mm_set_epi64x(half(8), half(0))
    };
    let zero = _mm_setzero_si128();
    let starts: Vec<u8> = (0..=255).collect();
    let mut sums: [__m128i; 16] = std::array::from_fn(|number| load(&starts[16 * number..]));
    for row in page.chunks(256) {
        for (sum, bytes) in sums.iter_mut().zip(row.chunks(16)) {
            *sum = _mm_aesenc_si128(*sum, load(bytes));
        }
    }
    let all = |first: usize| {
        let others = sums[first..].iter().step_by(2).skip(1);
        others.fold(sums[first], |all, &sum| _mm_aesenc_si128(all, sum))
    };
    let mut sum = _mm_aesenc_si128(all(0), all(1));
    for _ in 0..3 {
        sum = _mm_aesenc_si128(sum, zero);
    }
    _mm_cvtsi128_si64(sum) as u64
}

#[test]
fn every_flipped_bit_of_a_page_changes_its_checksum() {
    let mut page: Vec<u8> = (0..PAGE).map(|byte| (byte * 7) as u8).collect();
    for pages in all_pages() {
        // SAFETY: the page is the vector's.
        let sum = |page: &[u8]| unsafe { pages.checksum(page.as_ptr()) }.unwrap();
        let whole = sum(&page);
        for bit in 0..PAGE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum(&page), whole, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(sum(&page), whole);
    }
}

/// A copy that stopped half-way, and parts of a page that changed places.
#[test]
fn every_mixture_of_two_contents_changes_the_checksum() {
    const PART: usize = 16;
    let old: Vec<u8> = (0..PAGE).map(|byte| (byte / PART) as u8).collect();
    let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
    for pages in all_pages() {
        let mut sums = std::collections::HashSet::new();
        let mut add = |page: &[u8]| {
            // SAFETY: the page is the slice's.
            sums.insert(unsafe { pages.checksum(page.as_ptr()) }.unwrap());
        };
        for end in (0..=PAGE).step_by(PART) {
            add(&[&new[..end], &old[end..]].concat());
        }
        for first in (PART..PAGE).step_by(PART) {
            let mut page = old.clone();
            page.copy_within(..PART, first);
            page[..PART].copy_from_slice(&old[first..first + PART]);
            add(&page);
        }
        assert_eq!(sums.len(), PAGE / PART + 1 + PAGE / PART - 1);
    }
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
                pages.checksum(broken).map(drop),
                pages.copy_and_sum(broken, good).map(drop),
                pages.copy_and_sum(good, broken).map(drop),
            ]
        };
        for (number, result) in results.into_iter().enumerate() {
            let Broken { address, .. } = result.unwrap_err();
            assert_eq!(address & !(PAGE - 1), broken as usize, "access {number}");
        }
        // SAFETY: as above.
        let whole = unsafe { (pages.clear(good), pages.checksum(good)) };
        assert_eq!(whole, (Ok(()), Ok(expected_sum(pages, &[0; PAGE]))));
    }
}

#[test]
fn a_page_that_breaks_in_the_middle_is_an_error() {
    let pair = Pair::new();
    for pages in all_pages() {
        for distance in [1, 8, 100, PAGE - 1] {
            // SAFETY: all of it is mapped, and there is no reference to it.
            let sum = unsafe { pages.checksum(pair.good().add(distance)) };
            let at = sum.unwrap_err().address;
            assert_eq!(at & !(PAGE - 1), pair.broken() as usize);
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
            let sum = unsafe { pages.checksum(page.as_ptr()) };
            prop_assert_eq!(sum, Ok(expected_sum(pages, page)));
            let mut target = vec![0xa5; PAGE + 64];
            // SAFETY: so is this, of another one.
            let copied = unsafe { pages.copy(target.as_mut_ptr().add(to), page.as_ptr()) };
            prop_assert_eq!(copied, Ok(()));
            prop_assert_eq!(&target[to..to + PAGE], page);
            target[to..to + PAGE].fill(0x5a);
            // SAFETY: as above.
            let both = unsafe { pages.copy_and_sum(target.as_mut_ptr().add(to), page.as_ptr()) };
            prop_assert_eq!(both, sum);
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
