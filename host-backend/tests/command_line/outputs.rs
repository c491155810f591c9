//! Outputs that cannot be written, or that nobody reads: they end nothing and stop nothing.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::{FAILURE, Place, UNREACHABLE, kernel_of, vmsrs};

const GUEST_RESET: i32 = 6;

fn full_disk() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// A pipe whose reader is gone.
fn reader_gone() -> Stdio {
    let (_, writer) = io::pipe().unwrap();
    writer.into()
}

/// A pipe that has no room left, and its reader.
fn full_pipe() -> (io::PipeReader, Stdio) {
    let (reader, writer) = io::pipe().unwrap();
    let set_flags = |flags: libc::c_int| {
        // SAFETY: plain system call on a descriptor of this test.
        let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
        assert_eq!(set, 0);
    };
    set_flags(libc::O_NONBLOCK);
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    set_flags(0);
    (reader, writer.into())
}

/// Waits for the end of a process whose outputs are not read meanwhile.
fn wait(child: &mut Child) -> ExitStatus {
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[test]
fn standard_output_that_cannot_be_written_has_an_exit_code() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let output = vmsrs()
            .args(arguments)
            .stdout(full_disk())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILURE), "{arguments:?}: {text}");
        assert!(text.starts_with("vmsrs: "), "{text}");
        let usual = vmsrs().args(arguments).output().unwrap().status.code();
        let output = vmsrs()
            .args(arguments)
            .stdout(reader_gone())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), usual, "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn standard_error_that_cannot_be_written_changes_nothing() {
    let place = Place::new();
    for stderr in [full_disk, reader_gone] {
        let output = vmsrs()
            .args(["status", "--json", "--socket", &place.path("vm.sock")])
            .stderr(stderr())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(UNREACHABLE));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["exit"], UNREACHABLE);
        let invalid = vmsrs().arg("--no-such").stderr(stderr()).status().unwrap();
        assert_eq!(invalid.code(), Some(super::USAGE));
    }
}

/// A guest that resets itself at once, which is said on standard error each time.
fn resetting(place: &Place) -> Command {
    // mov al, 0xfe; out 0x64, al; jmp $
    let kernel = place.file("kernel", &kernel_of(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]));
    let mut command = place.command(&kernel, &["--json", "--restarts", "2"]);
    command.stdout(Stdio::piped());
    command
}

#[test]
fn a_guest_is_restarted_whatever_becomes_of_standard_error() {
    let place = Place::new();
    let (_reader, unread) = full_pipe();
    for stderr in [full_disk(), reader_gone(), unread] {
        let mut vm = resetting(&place).stderr(stderr).spawn().unwrap();
        let status = wait(&mut vm);
        if status.code() == Some(super::MACHINE) {
            eprintln!("skipped: no KVM for this user");
            return;
        }
        assert_eq!(status.code(), Some(GUEST_RESET));
        let output = vm.wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["exit"], GUEST_RESET);
        assert_eq!(report["restarts"], 2);
        assert_eq!(report["gave_up"], true);
    }
}

#[test]
fn a_vm_that_cannot_log_answers_and_ends_in_order() {
    let (_reader, unread) = full_pipe();
    for stderr in [full_disk(), reader_gone(), unread] {
        let place = Place::new();
        // It has something to log: with these it says what it does.
        let Some(vm) = super::start_vm_with(&place, &["-vvv"], stderr) else {
            return;
        };
        terminate(&vm);
        let report = super::report(&place, vm);
        assert_eq!(report["reason"], "stopped");
    }
}

fn terminate(vm: &Child) {
    // SAFETY: plain system call; the child has not been waited for, so its number is its own.
    unsafe { libc::kill(vm.id() as libc::pid_t, libc::SIGTERM) };
}

/// Starts a guest that writes to its console without end, and waits until the pipe that nobody reads is full.
fn chatting(place: &Place, more: &[&str]) -> Option<Child> {
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the out
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    let kernel = place.file("kernel", &kernel_of(&code));
    let mut vm = vmsrs()
        .args([
            "run",
            "--kernel",
            &kernel,
            "--socket",
            &place.path("vm.sock"),
        ])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let console = vm.stdout.as_ref().unwrap().as_raw_fd();
    loop {
        if let Some(status) = vm.try_wait().unwrap() {
            assert_eq!(status.code(), Some(super::MACHINE));
            eprintln!("skipped: no KVM for this user");
            return None;
        }
        if is_full(console) && (waits_for_a_pipe(vm.id(), "console") || lost_bytes(place) > Some(0))
        {
            return Some(vm);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a pipe, of which this is the reading end, has no room.
fn is_full(pipe: RawFd) -> bool {
    let writing = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{pipe}"))
        .unwrap();
    let mut poll = libc::pollfd {
        fd: writing.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one open descriptor.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 0 }
}

/// What `vmsrs status` says is lost of the console.
fn lost_bytes(place: &Place) -> Option<u64> {
    let status = vmsrs()
        .args(["status", "--json", "--socket", &place.path("vm.sock")])
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
    status["console_lost_bytes"].as_u64()
}

/// Waits until more bytes of the console are lost than that; returns how many.
fn wait_for_loss(place: &Place, before: u64) -> u64 {
    loop {
        match lost_bytes(place).expect("the command answers") {
            lost if lost > before => return lost,
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Takes the last bytes of room in a pipe, of which this is the reading end: a writer of many bytes waits while there is
/// room for fewer.
fn fill(pipe: RawFd) {
    let mut writing = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{pipe}"))
        .unwrap();
    while writing.write(b"x").is_ok() {}
}

/// Whether a thread of a process waits in a write to a pipe; false if the kernel does not say.
fn waits_for_a_pipe(process: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    threads.flatten().any(|thread| {
        let place = read(thread.path().join("wchan"));
        read(thread.path().join("comm")).trim() == name && place.contains("pipe")
    })
}

#[test]
fn a_console_that_nobody_reads_stops_neither_the_guest_nor_its_end() {
    for (more, code) in [(&[][..], 0), (&["--json"], FAILURE)] {
        let place = Place::new();
        let Some(mut vm) = chatting(&place, more) else {
            return;
        };
        if !more.contains(&"--json") {
            // The guest goes on, and what finds no room any more is counted.
            let lost = wait_for_loss(&place, 0);
            wait_for_loss(&place, lost);
        }
        fill(vm.stdout.as_ref().unwrap().as_raw_fd());
        terminate(&vm);
        let ended = wait(&mut vm);
        let mut said = String::new();
        vm.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(ended.code(), Some(code), "{said}");
        assert!(said.contains("bytes of the console were lost"), "{said}");
    }
}
