//! The `vmsrs` command with wrong input: one sentence with the remedy, a documented exit code, and
//! nothing left behind.

mod config;
mod disks;
mod metrics;
mod outputs;
mod sandbox;
mod service;
mod stop;

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vmsrs_host::control::{Client, Request, Response};
use vmsrs_host::host_memory::free_huge_pages;

const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const MACHINE: i32 = 3;
const UNREACHABLE: i32 = 4;
const BUSY: i32 = 7;
const NOT_FOUND: i32 = 8;

/// An ordinary user, for tests that root runs.
const NOBODY: u32 = 65_534;

/// A place for the files of one test.
struct Place {
    folder: TempDir,
    /// What is there before the command runs.
    before: Vec<PathBuf>,
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            before: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A file with `content`; its path.
    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A file that the loader takes for a kernel until it looks closer.
    fn kernel(&self) -> String {
        self.file("kernel", b"\x7fELF\x02\x01\x01")
    }

    /// `vmsrs run` with a kernel, and a socket in this place.
    fn run(&mut self, arguments: &[&str]) -> Output {
        let kernel = self.kernel();
        self.run_kernel(&kernel, arguments)
    }

    fn run_kernel(&mut self, kernel: &str, arguments: &[&str]) -> Output {
        self.before = list(self.folder.path());
        self.command(kernel, arguments).output().unwrap()
    }

    fn command(&self, kernel: &str, arguments: &[&str]) -> Command {
        let mut command = vmsrs();
        command.args(["run", "--console", "none", "--kernel", kernel]);
        if !arguments.contains(&"--socket") {
            command.arg("--socket").arg(self.path("vm.sock"));
        }
        command.args(arguments);
        command
    }

    /// The command ended with `code`, said one line with all of `words`, and left nothing behind.
    #[track_caller]
    fn assert_refused(&self, output: &Output, code: i32, words: &[&str]) {
        assert_sentence(output, code, words);
        assert_eq!(list(self.folder.path()), self.before);
    }
}

fn vmsrs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmsrs"));
    command.env_remove("RUST_LOG");
    command
}

#[track_caller]
fn assert_sentence(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("vmsrs: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_kernel_that_is_missing_is_named() {
    let mut place = Place::new();
    let output = place.run_kernel("/no/such/kernel", &[]);
    place.assert_refused(&output, USAGE, &["/no/such/kernel", "check the path"]);
    let folder = place.path("");
    let output = place.run_kernel(&folder, &[]);
    place.assert_refused(&output, USAGE, &["cannot read the kernel"]);
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let mut place = Place::new();
    for content in [&b""[..], b"hello, I am no kernel\n", &[0; 4096]] {
        let path = place.file("text", content);
        let output = place.run_kernel(&path, &[]);
        place.assert_refused(&output, USAGE, &[&path, "bzImage"]);
    }
    let output = place.run(&[]);
    place.assert_refused(&output, USAGE, &["kernel"]);
}

#[test]
fn an_initramfs_that_is_missing_or_something_else_is_refused() {
    let mut place = Place::new();
    let output = place.run(&["--initramfs", "/no/such/file"]);
    place.assert_refused(&output, USAGE, &["/no/such/file", "check the path"]);
    let path = place.file("text", b"hello");
    let output = place.run(&["--initramfs", &path]);
    place.assert_refused(&output, USAGE, &[&path, "cpio"]);
    let path = place.path("empty");
    fs::create_dir(&path).unwrap();
    let output = place.run(&["--initramfs", &path]);
    place.assert_refused(&output, USAGE, &[&path, "init"]);
}

#[test]
fn files_that_never_end_or_make_wait_are_refused_at_once() {
    let mut place = Place::new();
    let fifo = place.path("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for path in [fifo.as_str(), "/dev/zero"] {
        let output = place.run_kernel(path, &[]);
        place.assert_refused(&output, USAGE, &[path, "give a bzImage"]);
        let output = place.run(&["--initramfs", path]);
        place.assert_refused(&output, USAGE, &[path, "give a cpio archive"]);
    }
}

#[test]
fn an_initramfs_larger_than_the_memory_is_refused() {
    let mut place = Place::new();
    let path = place.file("archive", b"070701");
    let archive = fs::OpenOptions::new().write(true).open(&path).unwrap();
    archive.set_len(1 << 40).unwrap();
    let output = place.run(&["--initramfs", &path]);
    place.assert_refused(&output, USAGE, &[&path, "512M", "--memory"]);
}

#[test]
fn memory_that_makes_no_sense_is_refused() {
    let mut place = Place::new();
    for size in ["0", "3M", "10T", "65537K"] {
        let output = place.run(&["--memory", size]);
        place.assert_refused(
            &output,
            USAGE,
            &["guest memory of", "give a multiple of 4K"],
        );
    }
    let output = place.run(&["--memory", "1T"]);
    place.assert_refused(&output, MACHINE, &["1.0T", "--memory"]);
}

#[test]
fn a_window_that_makes_no_sense_is_refused() {
    let mut place = Place::new();
    for size in ["0", "1k", "4097k", "99T"] {
        let output = place.run(&["--window", size]);
        place.assert_refused(&output, USAGE, &["window", "give"]);
    }
    let output = place.run(&["--window", "64K"]);
    place.assert_refused(
        &output,
        USAGE,
        &["a window of 64K is too small", "--window"],
    );
    let output = place.run(&["--window", "4M", "--pool", "1000"]);
    place.assert_refused(&output, USAGE, &["a window of 4M", "at most 479 to --pool"]);
    let output = place.run(&["--window", "4M", "--pool", "480"]);
    place.assert_refused(&output, USAGE, &["at most 479 to --pool"]);
    let output = place.run(&["--pool", "4294967295"]);
    place.assert_refused(&output, USAGE, &["at most 32735 to --pool"]);
    let output = place.run(&["--pool", "0"]);
    place.assert_refused(&output, USAGE, &["at least 1 to --pool"]);
}

#[test]
fn huge_pages_need_sizes_that_are_made_of_them() {
    let mut place = Place::new();
    for (option, value, said) in [
        (
            "--memory",
            "65M",
            &["--memory must be a multiple of 2M", "65M"][..],
        ),
        (
            "--window",
            "7M",
            &["--window must be a multiple of 2M", "7M"],
        ),
        (
            "--window",
            "4M",
            &["a window of 4M", "at least 6M to --window"],
        ),
        ("--pool", "500", &["multiples of 512 frames", "500"]),
        ("--pool", "512000", &["at most 32256 to --pool"]),
    ] {
        let output = place.run(&["--hugepages", option, value]);
        place.assert_refused(&output, USAGE, said);
    }
    if free_huge_pages().is_some_and(|free| free >= 288) {
        eprintln!("skipped: this machine has enough huge pages");
        return;
    }
    let output = place.run(&["--hugepages", "--memory", "64M", "--window", "512M"]);
    place.assert_refused(
        &output,
        MACHINE,
        &["288 huge pages of 2M", "vm.nr_hugepages"],
    );
}

#[test]
fn what_a_refusal_of_sizes_advises_is_taken() {
    let mut place = Place::new();
    for arguments in [
        &["--window", "4M", "--pool", "479"][..],
        &["--window", "1M"],
    ] {
        // The next thing that is wrong.
        let mut arguments = arguments.to_vec();
        arguments.extend(["--initramfs", "/no/such/file"]);
        let output = place.run(&arguments);
        place.assert_refused(&output, USAGE, &["/no/such/file"]);
    }
}

#[test]
fn a_command_line_for_the_kernel_that_is_too_long_is_refused() {
    let mut place = Place::new();
    let output = place.run(&["--cmdline", &"x".repeat(2047)]);
    place.assert_refused(&output, USAGE, &["2047", "make --cmdline shorter by"]);
}

#[test]
fn a_number_of_vcpus_that_makes_no_sense_is_refused() {
    let mut place = Place::new();
    for number in ["0", "65", "4294967295"] {
        let output = place.run(&["--vcpus", number]);
        place.assert_refused(&output, USAGE, &[number, "--vcpus"]);
    }
}

#[test]
fn values_that_do_not_parse_are_refused_by_the_command_line() {
    for (option, value, remedy) in [
        ("--memory", "512", "for example 512M"),
        ("--memory", "lots", "for example 512M"),
        ("--window", "-1M", "for example 512M"),
        ("--vcpus", "two", "invalid digit"),
        ("--on-reboot", "sometimes", "restart, exit"),
        ("--restarts", "-1", "is not in 0.."),
        ("--tap", "a/b", "not an interface name"),
        ("--tap", "tap0,10.0.0.1", "ADDRESS/PREFIX"),
    ] {
        let argument = format!("{option}={value}");
        let output = vmsrs()
            .args(["run", "--kernel", "k", &argument])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(USAGE), "{text}");
        assert!(text.contains(remedy), "{text}");
    }
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let mut place = Place::new();
    let _other = UnixListener::bind(place.path("vm.sock")).unwrap();
    let output = place.run(&[]);
    place.assert_refused(&output, BUSY, &["vm.sock", "in use", "--socket"]);
    let path = place.file("precious", b"content");
    let output = place.run(&["--socket", &path]);
    place.assert_refused(&output, USAGE, &["precious", "not a socket"]);
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

#[test]
fn a_socket_that_cannot_be_made_is_refused() {
    let mut place = Place::new();
    let path = place.path(&"x".repeat(120));
    let output = place.run(&["--socket", &path]);
    place.assert_refused(&output, USAGE, &["cannot listen", "--socket"]);
    let output = place.run(&["--socket", "/no/such/folder/s"]);
    place.assert_refused(&output, USAGE, &["/no/such/folder/s"]);
    let path = place.path("mistyped/vm.sock");
    let output = place.run(&["--socket", &path]);
    place.assert_refused(&output, USAGE, &[&path, "check that its folder exists"]);
    let kernel = place.kernel();
    let output = vmsrs()
        .args(["run", "--name", "../vm", "--kernel", &kernel])
        .output()
        .unwrap();
    assert_sentence(&output, USAGE, &["../vm", "not a valid VM name"]);
}

#[test]
fn a_console_that_cannot_be_written_is_refused() {
    let mut place = Place::new();
    let output = place.run(&["--console", "/no/such/folder/log"]);
    // Given twice, an option is an error of its own.
    assert_eq!(output.status.code(), Some(USAGE));
    let kernel = place.kernel();
    let socket = place.path("vm.sock");
    let output = vmsrs()
        .args(["run", "--kernel", &kernel, "--socket", &socket])
        .args(["--console", "/no/such/folder/log"])
        .output()
        .unwrap();
    assert_sentence(&output, USAGE, &["/no/such/folder/log", "check the path"]);
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_tap_interface_in_use_is_left_alone() {
    let config = "vmsrs-test0".parse().unwrap();
    let Ok(_other) = vmsrs_host::devices::net::open_tap(&config) else {
        eprintln!("skipped: no tap interfaces for this user");
        return;
    };
    let mut place = Place::new();
    let output = place.run(&["--tap", "vmsrs-test0"]);
    place.assert_refused(&output, BUSY, &["vmsrs-test0", "in use"]);
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    let mut place = Place::new();
    let output = place.run(&["--tap", "lo"]);
    // Without the right to use any tap interface that is said first.
    let code = output.status.code().unwrap();
    assert!([USAGE, MACHINE].contains(&code));
    place.assert_refused(&output, code, &["tap"]);
}

/// The command as an ordinary user; `None` when this test's user is one, or cannot become one.
fn as_nobody(place: &Place, device: &str, arguments: &[&str]) -> Option<Output> {
    let metadata = fs::metadata(device).ok()?;
    if metadata.permissions().mode() & 0o006 != 0 {
        eprintln!("skipped: all users have access to {device}");
        return None;
    }
    // The program may lie where an ordinary user cannot look. Another process copies it: a child of
    // another test's thread would inherit our descriptor, and keep the copy from being executed.
    let program = place.path("vmsrs");
    let copied = Command::new("install")
        .args(["-m", "755", env!("CARGO_BIN_EXE_vmsrs"), &program])
        .status()
        .unwrap();
    assert!(copied.success());
    if chown(place.folder.path(), Some(NOBODY), Some(NOBODY)).is_err() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    let kernel = place.path("kernel");
    let output = Command::new(program)
        .args(["run", "--console", "none", "--kernel", &kernel])
        .args(["--socket", &place.path("vm.sock")])
        .args(arguments)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert!(!Path::new(&place.path("vm.sock")).exists());
    Some(output)
}

/// A bzImage that runs in circles.
fn tiny_kernel() -> Vec<u8> {
    // jmp $
    kernel_of(&[0xeb, 0xfe])
}

/// A bzImage that runs `code` in 64-bit mode.
fn kernel_of(code: &[u8]) -> Vec<u8> {
    const SETUP: usize = 0x400;
    const ENTRY_64: usize = 0x200;
    let mut image = vec![0; 0x1000];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // The header of the Linux/x86 boot protocol 2.15.
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x236, &3u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    put(SETUP + ENTRY_64, code);
    image
}

/// Starts a VM that runs in circles and waits until it can be reached; `None` if this machine
/// cannot run one.
fn start_vm(place: &Place) -> Option<Child> {
    start_vm_with(place, &[], Stdio::piped())
}

/// The same with more arguments, and another standard error.
fn start_vm_with(place: &Place, more: &[&str], stderr: Stdio) -> Option<Child> {
    start_vm_from(place, |command| {
        command.args(more).stderr(stderr);
    })
}

/// The same with a command that is changed.
fn start_vm_from(place: &Place, change: impl FnOnce(&mut Command)) -> Option<Child> {
    let kernel = place.file("kernel", &tiny_kernel());
    let mut command = place.command(&kernel, &["--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    change(&mut command);
    let mut vm = command.spawn().unwrap();
    loop {
        if let Some(status) = vm.try_wait().unwrap() {
            assert_eq!(status.code(), Some(MACHINE));
            eprintln!("skipped: no KVM for this user");
            return None;
        }
        // A client that connects during the start waits for the answer.
        let status = vmsrs()
            .args(["status", "--json", "--socket", &place.path("vm.sock")])
            .output()
            .unwrap();
        if status.status.success() {
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            assert_eq!(status["pid"], vm.id());
            return Some(vm);
        }
    }
}

/// The VM's report, and that nothing of it is left.
fn report(place: &Place, vm: Child) -> serde_json::Value {
    let output = vm.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(
        list(place.folder.path()),
        [PathBuf::from(place.path("kernel"))]
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_running_vm_answers_and_ends_when_its_socket_is_asked_to() {
    let place = Place::new();
    let Some(vm) = start_vm(&place) else { return };
    let socket = place.path("vm.sock");
    let run = |arguments: &[&str]| {
        let mut command = vmsrs();
        command.args(arguments).args(["--socket", &socket]);
        command.output().unwrap()
    };
    let status = run(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("vault"));
    let metrics = String::from_utf8(run(&["metrics"]).stdout).unwrap();
    assert!(metrics.contains("vmsrs_up{vm=\"vm\"} 1\n"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(run(&["domains"]).stdout, b"no domains\n");
    assert_sentence(&run(&["domains", "none"]), NOT_FOUND, &["no such app"]);
    let incidents = run(&["incidents"]);
    assert_eq!(incidents.stdout, b"no incidents\n");
    let page = run(&["incidents", "--html", "-"]);
    assert!(page.stdout.starts_with(b"<!DOCTYPE html>"), "{page:?}");
    let page = run(&["incidents", "--html", "/no/such/folder/page"]);
    assert_sentence(&page, USAGE, &["/no/such/folder/page", "--html"]);
    assert_sentence(&run(&["incidents", "7"]), NOT_FOUND, &["no incident 7"]);
    let second = place.command(&place.path("kernel"), &[]).output().unwrap();
    assert_sentence(&second, BUSY, &["vm.sock", "running VM"]);
    let mut follower = vmsrs();
    follower.args(["incidents", "--follow", "--socket", &socket]);
    let mut follower = follower
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut head = [0; 2];
    follower
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut head)
        .unwrap();
    assert_eq!(&head, b"ID");
    let mut client = Client::connect(Path::new(&socket)).unwrap();
    assert_eq!(client.ask(Request::Stop {}).unwrap(), Response::Stopping);
    let follower = follower.wait_with_output().unwrap();
    assert_sentence(&follower, UNREACHABLE, &["it is ending"]);
    let report = report(&place, vm);
    assert_eq!(report["reason"], "stopped");
    assert_eq!(report["exit"], 0);
    assert_eq!(report["recovery"]["pool_frames"], 8_192);
    assert_eq!(report["recovery"]["vault_frames"], 57_344);
}

#[test]
fn a_termination_signal_ends_a_vm_in_order() {
    let real_time = libc::SIGRTMAX();
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGALRM,
        real_time,
    ] {
        let place = Place::new();
        let Some(vm) = start_vm(&place) else { return };
        // SAFETY: plain system call; the child has not been waited for, so its number is its own.
        unsafe { libc::kill(vm.id() as libc::pid_t, signal) };
        assert_eq!(report(&place, vm)["reason"], "stopped");
        let socket = place.path("vm.sock");
        assert!(!Path::new(&socket).exists(), "signal {signal}");
    }
}

/// There is nothing to undo then, and a folder can take long.
#[test]
fn a_signal_while_the_initramfs_is_read_ends_the_command_at_once() {
    // From <fcntl.h>; libc does not have it.
    const F_SETSIG: libc::c_int = 10;
    let place = Place::new();
    let folder = place.path("guest");
    fs::create_dir(&folder).unwrap();
    let init = fs::File::create(Path::new(&folder).join("init")).unwrap();
    let lease = |command, value: libc::c_int| {
        // SAFETY: plain system call on our own descriptor.
        unsafe { libc::fcntl(init.as_raw_fd(), command, value) }
    };
    // Another process that opens the file waits for the lease's holder, which this signal, ignored
    // by default, tells.
    assert_eq!(lease(F_SETSIG, libc::SIGURG), 0);
    assert_eq!(lease(libc::F_SETLEASE, libc::F_WRLCK), 0);
    let mut command = place.command(&place.kernel(), &["--initramfs", &folder]);
    let mut command = command.spawn().unwrap();
    while lease(libc::F_GETLEASE, 0) == libc::F_WRLCK {
        assert_eq!(command.try_wait().unwrap(), None);
        thread::sleep(Duration::from_millis(1));
    }
    // Not SIGINT, which a shell's background jobs ignore.
    // SAFETY: plain system call; the child has not been waited for, so its number is its own.
    unsafe { libc::kill(command.id() as libc::pid_t, libc::SIGTERM) };
    let status = command.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
    assert!(!Path::new(&place.path("vm.sock")).exists());
}

#[test]
fn a_folder_of_symbols_that_is_missing_is_named() {
    let output = vmsrs()
        .args(["incidents", "--symbols", "/usr:/no/such/folder"])
        .output()
        .unwrap();
    assert_sentence(&output, USAGE, &["/no/such/folder", "--symbols"]);
}

#[test]
fn a_user_without_rights_on_kvm_is_told_how_to_get_them() {
    let place = Place::new();
    place.file("kernel", &tiny_kernel());
    if let Some(output) = as_nobody(&place, "/dev/kvm", &[]) {
        assert_sentence(&output, MACHINE, &["/dev/kvm", "group"]);
    }
}

#[test]
fn missing_tap_permission_names_the_remedy() {
    let place = Place::new();
    place.kernel();
    if let Some(output) = as_nobody(&place, "/dev/net/tun", &["--tap", "vmsrs-test1"]) {
        assert_sentence(&output, MACHINE, &["vmsrs-test1", "ip tuntap add"]);
    }
}

#[test]
fn software_kvm_error_is_not_restarted() {
    let doctor = vmsrs().args(["doctor", "--json"]).output().unwrap();
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let state = |id: &str| {
        let checks = doctor["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap()["state"].clone()
    };
    if state("kvm") != "ok" || state("second-level-paging") == "ok" {
        eprintln!("skipped: no KVM for this user, or one with EPT or NPT");
        return;
    }
    let mut place = Place::new();
    // mov eax, 0xd0000000; jmp rax: there is no memory.
    let code = [0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0];
    let kernel = place.file("kernel", &kernel_of(&code));
    let output = place.run_kernel(&kernel, &["--json"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(MACHINE), "{text}");
    assert!(text.contains("see `vmsrs doctor`"), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["exit"], MACHINE);
    assert_eq!(report["reason"], "crash");
    assert_eq!(report["restarts"], 0);
}

#[test]
fn a_vm_that_does_not_run_cannot_be_reached() {
    let place = Place::new();
    let socket = place.path("vm.sock");
    let stale = place.path("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for path in [&socket, &stale] {
        for arguments in [
            &["status"][..],
            &["incidents"],
            &["incidents", "7"],
            &["metrics"],
        ] {
            let output = vmsrs()
                .args(arguments)
                .args(["--socket", path])
                .output()
                .unwrap();
            assert_sentence(&output, UNREACHABLE, &[path, "vmsrs run"]);
        }
    }
}

#[test]
fn errors_are_json_too_where_json_is_asked_for() {
    let place = Place::new();
    let output = vmsrs()
        .args(["status", "--json", "--socket", &place.path("vm.sock")])
        .output()
        .unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["exit"], UNREACHABLE);
    assert!(value["error"].as_str().unwrap().contains("vm.sock"));
}

#[test]
fn the_doctor_says_whether_this_machine_can_run_a_guest() {
    let text = vmsrs().arg("doctor").output().unwrap();
    let json = vmsrs().args(["doctor", "--json"]).output().unwrap();
    assert_eq!(text.status.code(), json.status.code());
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let expected = if report["can_run"] == true {
        0
    } else {
        MACHINE
    };
    assert_eq!(json.status.code(), Some(expected));
    let text = String::from_utf8(text.stdout).unwrap();
    for check in report["checks"].as_array().unwrap() {
        assert!(text.contains(check["name"].as_str().unwrap()));
        assert_eq!(check["state"] == "ok", check["remedy"] == "");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in [
        "run",
        "doctor",
        "status",
        "incidents",
        "scrub",
        "stop",
        "metrics",
    ] {
        let output = vmsrs().args([command, "--help"]).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        // Metrics have a format of their own.
        let json = (command != "metrics").then_some("--json");
        for part in ["Usage:", "Examples:", "Exit codes:"]
            .into_iter()
            .chain(json)
        {
            assert!(text.contains(part), "{command}: no {part:?}");
        }
    }
}
