//! A request that writes nothing makes no system call, and so causes no exit to the host.

use anyhow::{Result, ensure};
use vmsrs::{App, Error};

use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "read_only_request_makes_no_system_call",
    machine: Machine::Usual,
    steps: &[("read", read)],
    host: |guest| guest.run_steps(&["read"]),
};

fn read(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("read-only") }?;
    let domain = app.domain("user")?;
    domain.run(|request| {
        let block = request.alloc(5u64)?;
        request.set_root(Some(block.into()))
    })?;
    let look = || {
        domain.run(|request| {
            // SAFETY: the domain is held, and the block lives in it.
            let value = request
                .root::<u64>()
                .map(|root| unsafe { root.read_volatile() });
            Ok::<_, Error>(value)
        })
    };
    // The library looks at the state of a thread in each of its first 64 requests, and in one of 1280 later.
    for _ in 0..70 {
        ensure!(look()? == Some(5), "the value is missing");
    }
    // From here on, the kernel kills this thread for any system call other than read, write, exit and sigreturn.
    // SAFETY: only restricts this thread.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
    let mut succeeds = result == 0;
    for _ in 0..1000 {
        succeeds &= matches!(look(), Ok(Some(5)));
    }
    // SAFETY: ends the only thread without the other system calls of exit().
    unsafe { libc::syscall(libc::SYS_exit, libc::c_int::from(!succeeds)) };
    unreachable!("exit does not return")
}
