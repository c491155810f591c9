//! The clock that deadlines are on.

/// `CLOCK_MONOTONIC` in nanoseconds. Async-signal-safe.
pub(crate) fn now() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The same clock at the kernel's last tick, some milliseconds ago: the processor's own clock is not read.
pub(crate) fn last_tick() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
