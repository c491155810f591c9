//! Which thread is which: a thread's number is used again when it has ended, by any thread that starts later.
//!
//! So an identity has the time of its start too, as `/proc` tells it. Where that is not mounted the number
//! alone counts. Nothing here takes memory from any heap.

use super::local::local;
use std::io::Write;

/// Bits of an identity: the thread's number, and above it what tells threads of the same number apart.
pub(crate) const BITS: u32 = 41;

/// Bits of a thread's number: Linux has numbers below 2^22.
pub(crate) const NUMBER_BITS: u32 = 22;

/// Values of what tells threads apart, without 0 (not known).
const MARKS: u64 = (1 << (BITS - NUMBER_BITS)) - 1;

/// Place of the time of start in `stat`, counted from the first field after the name in brackets; see
/// `proc_pid_stat(5)`, field 22.
const START: usize = 19;

/// The calling thread's number. Async-signal-safe.
pub(crate) fn thread_number() -> u32 {
    // SAFETY: no conditions.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// The thread's number in an identity, or in what holds one in its lowest bits.
pub(crate) fn number_in(identity: u64) -> u32 {
    (identity & ((1 << NUMBER_BITS) - 1)) as u32
}

/// The calling thread's identity.
pub(crate) fn identity() -> u64 {
    let (number, known) = (thread_number(), local().identity.get());
    // A child of a fork has its parent's copy.
    if number_in(known) == number {
        return known;
    }
    let identity = u64::from(number) | mark(number) << NUMBER_BITS;
    local().identity.set(identity);
    identity
}

/// Whether a thread of this process has the number.
pub(crate) fn is_used(identity: u64) -> bool {
    // SAFETY: signal 0 only asks.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number_in(identity), 0) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Whether that very thread lives, as far as can be told. Costs some microseconds, and has a file open meanwhile:
/// the caller must not be cut short.
pub(crate) fn lives(identity: u64) -> bool {
    if !is_used(identity) {
        return false;
    }
    let (known, now) = (identity >> NUMBER_BITS, mark(number_in(identity)));
    known == 0 || now == 0 || known == now
}

/// What tells threads of this process with the same number apart, or 0 when it is not known.
fn mark(number: u32) -> u64 {
    let mut text = [0; 512];
    start_time(stat(number, &mut text)).map_or(0, |ticks| 1 + ticks % MARKS)
}

/// Time of a thread's start in ticks since the system's, from its `stat`.
fn start_time(stat: &[u8]) -> Option<u64> {
    // The name may have brackets and blanks in it.
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = stat.get(name_end + 2..)?;
    let field = fields.split(|&byte| byte == b' ').nth(START)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// A thread's `stat`; nothing if it cannot be read.
fn stat(number: u32, text: &mut [u8]) -> &[u8] {
    // Zeros after the path end it.
    let mut path = [0; 64];
    if write!(&mut path[..63], "/proc/self/task/{number}/stat").is_err() {
        return &[];
    }
    // SAFETY: the path is a C string.
    let file = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return &[];
    }
    // SAFETY: as long as said; the file is closed once.
    let read = unsafe {
        let read = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        read
    };
    text.get(..usize::try_from(read).unwrap_or(0))
        .unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reused_thread_id_is_another_identity() {
        let mine = identity();
        assert_eq!(mine, identity());
        assert_eq!(number_in(mine), thread_number());
        assert!(lives(mine));
        let before =
            u64::from(thread_number()) | (mark(thread_number()) % MARKS + 1) << NUMBER_BITS;
        assert!(is_used(before) && !lives(before));
        assert!(lives(thread_number().into()), "its start is not known");
        let ended = std::thread::spawn(identity).join().unwrap();
        while is_used(ended) {
            std::thread::yield_now();
        }
        assert!(!lives(ended));
    }

    #[test]
    fn start_time_is_found_after_an_odd_name() {
        let text = b"7 (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n";
        assert_eq!(start_time(text), Some(4711));
        assert_eq!(start_time(b"7 (a) S 1 2"), None);
        assert_eq!(start_time(b"7 (a)"), None);
        assert_eq!(start_time(b""), None);
    }
}
