//! For programs that put load on a server: what it costs the server, and how not to be in its way.

use std::fs;
use std::io::{Error, ErrorKind, Result};

/// Nanoseconds of CPU time that the threads of a process have had, in user mode and in the kernel.
///
/// # Errors
///
/// When the process has ended.
pub fn cpu_ns(process: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let times = fs::read_to_string(thread?.path().join("schedstat"))?;
        let time = times.split_whitespace().next();
        sum += time
            .and_then(|time| time.parse::<u64>().ok())
            .ok_or_else(|| Error::new(ErrorKind::InvalidData, "schedstat"))?;
    }
    Ok(sum)
}

/// Has the calling thread preempt no other, as clients on machines of their own do not: a server whose client takes its CPU
/// finds fewer connections ready, and pays more for each. Threads and processes that are started later are as usual.
///
/// # Errors
///
/// When the kernel refuses it.
pub fn let_others_run() -> Result<()> {
    schedule(libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK)
}

/// As [`let_others_run`], and so do the threads and processes that are started later.
///
/// # Errors
///
/// When the kernel refuses it.
pub fn batch() -> Result<()> {
    schedule(libc::SCHED_BATCH)
}

#[expect(
    unsafe_code,
    reason = "a system call that the standard library does not have"
)]
fn schedule(policy: i32) -> Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: changes how this thread is scheduled.
    let ret = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    match ret {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_does_not_fall() {
        let before = cpu_ns(std::process::id()).unwrap();
        assert!(cpu_ns(std::process::id()).unwrap() >= before);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_cpu_time() {
        assert!(cpu_ns(u32::MAX).is_err());
    }
}
