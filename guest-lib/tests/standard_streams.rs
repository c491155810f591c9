//! A deadline while a request prints or reads by Rust's library, which has locks for that. Processes of their own: a stream that
//! stays locked would be the test harness's.

#[path = "common/child.rs"]
mod child;
mod common;

use child::in_a_child;
use common::{domain, success};
use std::fs::{self, File};
use std::io::{Read, Write, stdin};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use vmsrs::{Kind, Options, RunError};

/// Runs them in a process whose `descriptor` is a pipe: that nobody reads, or nobody writes to, until a request has failed.
fn with_a_pipe(name: &str, descriptor: i32, request: fn(), next: fn()) {
    in_a_child(name, || run(descriptor, request, next));
}

fn run(descriptor: i32, request: fn(), next: fn()) {
    static ENDED: AtomicBool = AtomicBool::new(false);
    let mut ends = [0; 2];
    // SAFETY: a pipe in the place of the descriptor; a hang fails the test.
    let [mut input, mut output] = unsafe {
        libc::alarm(60);
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        libc::dup2(ends[usize::from(descriptor != 0)], descriptor);
        ends.map(|end| File::from_raw_fd(end))
    };
    let domain = domain();
    success(domain, |_| ());
    let options = Options {
        deadline: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    // SAFETY: the calling thread.
    let (me, number) = unsafe { (libc::pthread_self(), libc::gettid()) };
    let call = if descriptor == 0 {
        libc::SYS_read
    } else {
        libc::SYS_write
    };
    // What the driver does, and more often, once the request waits.
    let interrupts = thread::spawn(move || {
        let waits = format!("{call} {descriptor:#x} ");
        let sleeps_in = || fs::read_to_string(format!("/proc/self/task/{number}/syscall"));
        while !sleeps_in().unwrap().starts_with(&waits) {
            thread::sleep(Duration::from_millis(1));
        }
        while !ENDED.load(Ordering::Relaxed) {
            // SAFETY: the thread waits for this one.
            unsafe { libc::pthread_kill(me, libc::SIGRTMAX()) };
            thread::sleep(Duration::from_millis(1));
        }
    });
    let outcome = domain.run_with(&options, |_| {
        request();
        Ok::<_, ()>(())
    });
    ENDED.store(true, Ordering::Relaxed);
    interrupts.join().unwrap();
    match outcome {
        Err(RunError::Failed(failure)) => {
            assert_eq!(failure.kind, Kind::Deadline, "{failure}");
        }
        other => panic!("the request did not fail: {other:?}"),
    }
    if descriptor == 0 {
        output.write_all(b"a line\nand one more\n").unwrap();
    } else {
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while input.read(&mut bytes).is_ok_and(|read| read > 0) {}
        });
    }
    thread::spawn(next).join().unwrap();
    success(domain, |_| next());
}

fn read_a_line() {
    let mut line = String::new();
    stdin().read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'));
}

#[test]
fn deadline_while_a_request_prints_locks_nobody_out() {
    with_a_pipe(
        "deadline_while_a_request_prints_locks_nobody_out",
        libc::STDOUT_FILENO,
        || {
            loop {
                println!("{:>200}", "a line");
            }
        },
        || println!("a line"),
    );
}

#[test]
fn deadline_while_a_request_prints_an_error_locks_nobody_out() {
    with_a_pipe(
        "deadline_while_a_request_prints_an_error_locks_nobody_out",
        libc::STDERR_FILENO,
        || {
            loop {
                eprintln!("{:>200}", "a line");
            }
        },
        || eprintln!("a line"),
    );
}

#[test]
fn deadline_while_a_request_reads_a_line_locks_nobody_out() {
    with_a_pipe(
        "deadline_while_a_request_reads_a_line_locks_nobody_out",
        libc::STDIN_FILENO,
        // Takes no notice of the error, and ends as if all were well.
        || drop(stdin().read_line(&mut String::new())),
        read_a_line,
    );
}
