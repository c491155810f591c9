//! The dynamic linker's locks: a thread that is cut short in a constructor that `dlopen` runs, or in `dlsym` by a wild name,
//! has them.
//!
//! They are recursive mutexes, which say whose they are, somewhere in the linker's public variable.

use super::modules;
use super::weak::address_of;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough for that variable, which has 4336 bytes in glibc 2.36.
const WORDS: usize = 1024;

/// A mutex of the C library, as programs are compiled with it: the lock and how often it was taken; its owner and its users;
/// its kind; neighbours in a list of robust ones.
const LENGTH: usize = 5;
const RECURSIVE: u64 = libc::PTHREAD_MUTEX_RECURSIVE as u64;

/// More is not a count.
const TAKEN_MAX: u64 = 1000;

fn halves(word: u64) -> (u64, u64) {
    (word & 0xffff_ffff, word >> 32)
}

/// Whether the words may be a recursive mutex, whoever has it.
fn may_be_mutex(words: &[u64]) -> bool {
    let &[taken, owner, RECURSIVE, 0, 0] = words else {
        return false;
    };
    let ((lock, count), (owner, users)) = (halves(taken), halves(owner));
    lock <= 2 && count <= TAKEN_MAX && users <= 1 && (owner == 0) == (users == 0)
}

/// Whether the words, which begin with one, say that the thread has it.
fn is_locked(words: &[u64; 2], thread: u32) -> bool {
    let ((lock, count), (owner, users)) = (halves(words[0]), halves(words[1]));
    owner == thread.into()
        && users <= 1
        && matches!(lock, 1 | 2)
        && (1..=TAKEN_MAX).contains(&count)
}

/// Most places that are noted.
const PLACES: usize = 32;

/// Where such mutexes may lie; those at the end are 0.
static CANDIDATES: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];

/// Notes where they may lie: to look through the whole variable takes longer than the rest of a failure.
pub(crate) fn install() {
    let variable = address_of!("_rtld_global") as u64;
    let mut words = [0; WORDS];
    // Its end may be the last of what is mapped.
    let until_page = (4096 - variable % 4096) as usize / size_of::<u64>();
    let count = [WORDS, WORDS / 2 + until_page.min(WORDS / 2), until_page]
        .into_iter()
        .find(|&count| variable != 0 && modules::read(variable, &mut words[..count]).is_some());
    let places = words[..count.unwrap_or(0)]
        .windows(LENGTH)
        .enumerate()
        .filter(|(_, words)| may_be_mutex(words))
        .map(|(place, _)| variable + (place * size_of::<u64>()) as u64);
    for (candidate, place) in CANDIDATES.iter().zip(places) {
        candidate.store(place, Ordering::Relaxed);
    }
}

/// Ends a look-up of a name that was cut short: it has noted that nothing may be unloaded meanwhile, which the next one takes
/// back. Uses the linker, and must run aside.
pub(crate) fn end_lookup() {
    // SAFETY: a name that nobody has.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"vmsrs_no_such_name".as_ptr()) };
}

/// Unlocks those that the calling thread has, whose number that is. A linked list that it was changing stays as it is.
pub(crate) fn unlock(thread: u32) {
    let places = CANDIDATES.iter().map(|place| place.load(Ordering::Relaxed));
    for place in places.take_while(|&place| place != 0) {
        // SAFETY: words of the linker's variable, which is always there. Another thread may be changing them, not those of a mutex
        // that the calling one has.
        let words = unsafe { (place as *const [u64; 2]).read_volatile() };
        if is_locked(&words, thread) {
            for _ in 0..words[0] >> 32 {
                // SAFETY: a mutex that the calling thread has, that many times.
                unsafe { libc::pthread_mutex_unlock(place as *mut _) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::zeroed;

    #[test]
    fn a_locked_recursive_mutex_is_known_by_its_owner() {
        // SAFETY: all zero is such a value; a mutex of this function, which it locks.
        let (words, me) = unsafe {
            let mut attributes = zeroed();
            libc::pthread_mutexattr_init(&raw mut attributes);
            libc::pthread_mutexattr_settype(&raw mut attributes, libc::PTHREAD_MUTEX_RECURSIVE);
            let mut mutex = zeroed::<[u64; 5]>();
            let place = (&raw mut mutex).cast();
            libc::pthread_mutex_init(place, &raw const attributes);
            let words = |mutex: &[u64; 5]| [mutex[0], mutex[1]];
            let me = libc::gettid().cast_unsigned();
            assert!(may_be_mutex(&mutex) && !is_locked(&words(&mutex), me));
            libc::pthread_mutex_lock(place);
            libc::pthread_mutex_lock(place);
            assert!(may_be_mutex(&mutex));
            (words(&mutex), me)
        };
        assert!(is_locked(&words, me));
        assert!(!is_locked(&words, me + 1));
        assert!(!may_be_mutex(&[0; 5]) && !may_be_mutex(&[0, 0, 1, 0, 1]));
    }
}
