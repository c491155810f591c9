//! What a request costs, in instructions: counted, so that the verdict is the same on every machine.

use crate::Error;
use crate::mock::{MockBackend, list_written};
use crate::state::domain::Domain;
use std::process::Command;
use vmsrs_protocol::PAGE_SIZE;

/// Most instructions of a request that does nothing, without protection keys.
const EMPTY_MAX: u64 = 410;

/// Most instructions of a request that writes one page, in the process and without protection keys.
const WRITES_MAX: u64 = 1_600;

/// The process that is counted has this in its environment.
const COUNTED: &str = "VMSRS_COUNTED";

fn request(domain: &'static Domain, work: impl FnOnce()) {
    let outcome = domain.run(|_| {
        work();
        Ok::<_, Error>(())
    });
    outcome.unwrap();
}

/// Stops the traced process: what comes until the next stop is counted.
fn mark() {
    // SAFETY: sends this process a signal.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// The process that is counted, one mark before and after each thing.
fn counted() {
    // SAFETY: the parent traces this process, if it may.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        return;
    }
    let app = MockBackend::app("counted", |hooks| hooks.protects = true);
    let domain = app.domain("one").unwrap();
    let mut block = 0;
    request(domain, || {
        block = domain.allocate(100_000, 16).unwrap().as_ptr() as u64;
    });
    // One in the middle of the block.
    let page = (block - app.base()) / u64::from(PAGE_SIZE) + 2;
    let page = u32::try_from(page).unwrap();
    let write = |times: usize| (0..times).for_each(|_| list_written(&[page]));
    let things: [&dyn Fn(); 4] = [
        &|| (),
        &|| request(domain, || ()),
        &|| request(domain, || write(1)),
        &|| request(domain, || write(2)),
    ];
    for thing in things {
        // The first time is dearer.
        thing();
        mark();
        thing();
        mark();
    }
}

/// Instructions between the marks of a child of this thread; `None` if it cannot be traced.
fn count(child: libc::pid_t) -> Option<Vec<u64>> {
    let (mut counts, mut marks) = (Vec::new(), 0);
    loop {
        let mut status = 0;
        // SAFETY: children of this thread alone; the one that is traced may be a thread of the process.
        let thread =
            unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        assert!(thread > 0, "{thread}");
        if libc::WIFEXITED(status) {
            if thread == child {
                return (marks != 0).then_some(counts);
            }
            continue;
        }
        assert!(libc::WIFSTOPPED(status), "the child was killed: {status}");
        let (is_mark, inside) = (libc::WSTOPSIG(status) == libc::SIGSTOP, marks % 2 == 1);
        match (is_mark, inside) {
            (true, false) => counts.push(0),
            (false, true) => *counts.last_mut()? += 1,
            _ => (),
        }
        marks += usize::from(is_mark);
        let steps = marks % 2 == 1;
        let how = if steps {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        };
        // SAFETY: it is stopped, and gets no signal.
        assert_eq!(unsafe { libc::ptrace(how, thread, 0, 0) }, 0);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "counts the instructions of optimized code")]
fn common_request_is_short() {
    if std::env::var_os(COUNTED).is_some() {
        return counted();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "run::tests::common_request_is_short"])
        .args(["--test-threads", "1", "--nocapture"])
        .env(COUNTED, "1")
        .env("VMSRS_PKU", "off")
        .stdout(std::process::Stdio::null())
        .spawn();
    #[expect(clippy::zombie_processes, reason = "count() waits for it")]
    let child = child.unwrap().id().cast_signed();
    let Some(counts) = count(child) else {
        eprintln!("not counted: this process may not trace a child");
        return;
    };
    let [nothing, empty, one, two] = counts[..] else {
        panic!("{counts:?}");
    };
    let (empty, writes) = (empty - nothing, one - (two - one) - nothing);
    println!("{empty} instructions for an empty request, {writes} for one that writes a page");
    assert!(empty <= EMPTY_MAX, "{empty}");
    assert!(writes <= WRITES_MAX, "{writes}");
}
