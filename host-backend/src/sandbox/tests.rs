//! Confined threads in a process of their own: this test program, started again.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::thread;

use super::*;
use crate::host_memory::HostPages;
use crate::regions::Regions;

/// Tells the process which of [`ATTEMPTS`] it is to make.
const VARIABLE: &str = "VMSRS_SANDBOX_TEST";

/// Something that a confined thread tries.
struct Attempt {
    name: &'static str,
    role: Role,
    /// What it does; the process ends with success when this returns.
    make: fn(),
    /// The call that is to end the process.
    stopped: Option<&'static str>,
}

const ATTEMPTS: [Attempt; 14] = [
    Attempt {
        name: "execve",
        role: Role::Vcpu,
        make: || {
            let none = std::ptr::null();
            // SAFETY: the path is a C string, and no arguments are allowed by Linux.
            unsafe { libc::execve(c"/bin/true".as_ptr(), none, none) };
        },
        stopped: Some("system call 59 (execve) of thread vcpu0"),
    },
    Attempt {
        name: "socket",
        role: Role::Device,
        make: || drop(std::net::TcpListener::bind("127.0.0.1:0")),
        stopped: Some("(socket)"),
    },
    Attempt {
        name: "write-file",
        role: Role::Vcpu,
        make: || drop(std::fs::write("/tmp/vmsrs-sandbox-test", "x")),
        stopped: Some("(openat)"),
    },
    Attempt {
        name: "executable-memory",
        role: Role::Control,
        make: || {
            let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, which overlays nothing.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        },
        stopped: Some("(mmap)"),
    },
    Attempt {
        name: "kvm-of-a-device",
        role: Role::Device,
        make: || {
            // SAFETY: the call fails, on standard input.
            unsafe { libc::ioctl(0, 0xae80) };
        },
        stopped: Some("(ioctl)"),
    },
    Attempt {
        name: "offloads-of-a-tap",
        role: Role::Vcpu,
        make: || {
            // SAFETY: the call fails, on standard input.
            unsafe { libc::ioctl(0, libc::TUNSETOFFLOAD) };
        },
        stopped: None,
    },
    Attempt {
        name: "another-tap",
        role: Role::Vcpu,
        make: || {
            // SAFETY: the call fails, on standard input.
            unsafe { libc::ioctl(0, libc::TUNSETIFF) };
        },
        stopped: Some("(ioctl)"),
    },
    Attempt {
        name: "read-file",
        role: Role::Device,
        make: || {
            let error = std::fs::File::open("/etc/passwd").err();
            let is_refused =
                error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            assert!(is_refused || landlock_version() == 0);
        },
        stopped: None,
    },
    Attempt {
        name: "threads-and-memory",
        role: Role::Vcpu,
        make: || {
            let threads: Vec<_> = (0..8)
                .map(|size| thread::spawn(move || vec![1u8; size << 20].len()))
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        },
        stopped: None,
    },
    Attempt {
        name: "replace-frame-background",
        role: Role::Background,
        make: replace_frame,
        stopped: None,
    },
    Attempt {
        name: "replace-frame-control",
        role: Role::Control,
        make: replace_frame,
        stopped: None,
    },
    Attempt {
        name: "replace-frame-device",
        role: Role::Device,
        make: replace_frame,
        stopped: None,
    },
    Attempt {
        name: "replace-frame-vcpu",
        role: Role::Vcpu,
        make: replace_frame,
        stopped: None,
    },
    Attempt {
        name: "panic",
        role: Role::Device,
        make: || {
            let panicked = thread::spawn(|| panic!("expected in this test")).join();
            assert!(panicked.is_err());
        },
        stopped: None,
    },
];

/// What every thread may have to do whose work finds broken memory of the host.
fn replace_frame() {
    let regions = Regions::new(64, 64, HostPages::Standard).unwrap();
    regions.vault.replace(3, &[7; 4096]).unwrap();
}

/// Makes the attempt that the variable names, in a process that a test of this file has started.
#[test]
fn attempt() {
    let Ok(name) = std::env::var(VARIABLE) else {
        return;
    };
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name);
    let attempt = attempt.unwrap();
    enable(Files::default()).unwrap();
    let role = attempt.role;
    // As the main thread's: a vCPU has its rules for files from there.
    files::restrict(Role::Main, FILES.get().unwrap()).unwrap();
    let thread = thread::Builder::new().name("vcpu0".into()).spawn(move || {
        confine(role);
        (attempt.make)();
    });
    thread.unwrap().join().unwrap();
    io::stdout().flush().unwrap();
}

fn run(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::attempt", "--nocapture"])
        .env(VARIABLE, name)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

#[test]
fn what_a_role_does_not_need_ends_the_process_with_the_name_of_the_call() {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    if !actions.is_ok_and(|actions| actions.contains("trap")) {
        eprintln!("skipped: the kernel has no seccomp filters");
        return;
    }
    for attempt in ATTEMPTS {
        let output = run(attempt.name);
        let said = String::from_utf8_lossy(&output.stderr);
        match attempt.stopped {
            None => assert!(output.status.success(), "{}: {said}", attempt.name),
            Some(call) => {
                assert_eq!(
                    output.status.signal(),
                    Some(libc::SIGSYS),
                    "{}: {said}",
                    attempt.name
                );
                assert!(said.contains(call), "{}: {said}", attempt.name);
                assert!(said.contains("--sandbox off"), "{said}");
            }
        }
    }
}

#[test]
fn a_panic_of_a_confined_thread_has_a_backtrace() {
    let said = run("panic").stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("sandbox::tests::"), "{said}");
}
