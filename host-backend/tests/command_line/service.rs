//! The systemd service: its unit file, and what `vmsrs run` tells its manager.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::Duration;

use vmsrs_host::control::{Client, Request};

use super::{Place, report, start_vm_from};

/// Highest exposure that `systemd-analyze security` may find.
const EXPOSURE_MAX: f32 = 2.0;

/// The services: one that runs a VM, one that follows its incidents, and one that serves the metrics of all.
const UNITS: [&str; 3] = ["vmsrs@", "vmsrs-incidents@", "vmsrs-metrics"];

fn unit(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd");
    fs::read_to_string(format!("{folder}/{name}.service")).unwrap()
}

/// `systemd-analyze` on a unit as an instance; `None` when this machine does not have the program.
fn analyze(name: &str, arguments: &[&str]) -> Option<Output> {
    let place = Place::new();
    let write = |name: &str| {
        // Paths of programs are checked too.
        let unit = unit(name).replace("/usr/bin/vmsrs", env!("CARGO_BIN_EXE_vmsrs"));
        let name = name.replace('@', "@web");
        place.file(&format!("{name}.service"), unit.as_bytes())
    };
    let paths = UNITS.map(write);
    let path = UNITS.iter().position(|other| *other == name).unwrap();
    let mut command = Command::new("systemd-analyze");
    match command.args(arguments).arg(&paths[path]).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: systemd-analyze (package systemd) is not installed");
            None
        }
        output => Some(output.unwrap()),
    }
}

#[test]
fn the_units_are_valid() {
    for name in UNITS {
        let Some(output) = analyze(name, &["verify", "--man=no"]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        // Other units of this machine are read too.
        let ours: Vec<_> = said.lines().filter(|line| line.contains("vmsrs")).collect();
        assert!(ours.is_empty(), "{said}");
    }
}

#[test]
fn the_units_leave_the_services_few_rights() {
    for name in UNITS {
        let Some(output) = analyze(name, &["security", "--offline=true", "--no-pager"]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let exposure = said
            .lines()
            .find_map(|line| line.split_once("Overall exposure level for "))
            .and_then(|(_, rest)| rest.split_once(": "))
            .and_then(|(_, rest)| rest.split(' ').next()?.parse::<f32>().ok());
        let exposure = exposure.unwrap_or_else(|| panic!("no exposure level: {said}"));
        assert!(exposure <= EXPOSURE_MAX, "{said}");
    }
}

#[test]
fn the_commands_of_the_units_are_valid() {
    let words = |unit: &str, name: &str| -> Vec<String> {
        let line = unit.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name}"));
        line.split(' ')
            .skip(1)
            .map(|word| word.replace("%i", "web"))
            .collect()
    };
    for (name, line, code) in [
        (UNITS[0], "ExecStart=", 2),
        (UNITS[0], "ExecStop=-", 4),
        (UNITS[1], "ExecStart=", 4),
    ] {
        let mut words = words(&unit(name), line);
        for word in &mut words {
            if word.starts_with("/etc/") || word.starts_with("/run/") {
                *word = format!("/no/such/folder{word}");
            }
        }
        let output = super::vmsrs().args(words).output().unwrap();
        super::assert_sentence(&output, code, &["/no/such/folder"]);
    }
}

/// What a VM tells its manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(place: &Path) -> Self {
        let path = place.join("notify");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            path,
        }
    }

    /// The next message.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Waits for a message with `text`; returns those before it, and it.
    fn wait_for(&self, text: &str) -> Vec<String> {
        let mut messages = vec![self.next()];
        while !messages.last().unwrap().contains(text) {
            messages.push(self.next());
        }
        messages
    }
}

/// A VM with a manager whose watchdog has so many microseconds.
fn start_service(place: &Place, manager: &Manager, watchdog: &str) -> Option<Child> {
    start_vm_from(place, |command| {
        command
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", watchdog);
    })
}

fn stop(place: &Place, vm: Child) {
    let mut client = Client::connect(Path::new(&place.path("vm.sock"))).unwrap();
    client.ask(Request::Stop {}).unwrap();
    report(place, vm);
}

#[test]
fn a_guest_without_a_driver_is_alive_and_not_ready() {
    let (place, outside) = (Place::new(), Place::new());
    let manager = Manager::new(outside.folder.path());
    let Some(vm) = start_service(&place, &manager, "400000") else {
        return;
    };
    let mut messages = manager.wait_for("STATUS=waiting for the guest's driver");
    for _ in 0..3 {
        messages.extend(manager.wait_for("WATCHDOG=1"));
    }
    stop(&place, vm);
    messages.extend(manager.wait_for("STOPPING=1"));
    let is_ready = |message: &String| message.contains("READY=1");
    assert!(!messages.iter().any(is_ready), "{messages:?}");
}

/// Holds a thread of a child at its next instruction, until this is dropped.
struct Held(libc::pid_t);

impl Held {
    fn new(thread: libc::pid_t) -> Self {
        let held = Self(thread);
        held.request(libc::PTRACE_SEIZE);
        held.request(libc::PTRACE_INTERRUPT);
        let mut status = 0;
        // SAFETY: the pointer is valid; the thread is traced by this one.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, thread);
        held
    }

    fn request(&self, request: libc::c_uint) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: none of the requests has memory effects here.
        let result = unsafe { libc::ptrace(request, self.0, none, none) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.request(libc::PTRACE_DETACH);
    }
}

/// Waits for a thread of a process to be there.
fn thread(process: &Child, name: &str) -> libc::pid_t {
    let tasks = format!("/proc/{}/task", process.id());
    loop {
        let mut tasks = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap());
        let task = tasks.find(|task| {
            let found = fs::read_to_string(task.path().join("comm"));
            found.is_ok_and(|found| found.trim() == name)
        });
        if let Some(task) = task {
            return task.file_name().to_str().unwrap().parse().unwrap();
        }
        sleep(Duration::from_millis(10));
    }
}

/// Holds a thread that is asked whether it is alive, and waits for the message that it does not answer.
fn hold_until_told(vm: &Child, manager: &Manager, name: &str) -> Held {
    let silence = format!("no answer from {name}");
    loop {
        let held = Held::new(thread(vm, name));
        // One of these may be on its way. After more, the thread was held before anybody knew of it.
        let mut answers = 0;
        while answers < 3 {
            let message = manager.next();
            if message.contains(&silence) {
                return held;
            }
            answers += u32::from(message.contains("WATCHDOG=1"));
        }
    }
}

#[test]
fn a_thread_that_hangs_stops_the_watchdogs_messages() {
    let (place, outside) = (Place::new(), Place::new());
    let manager = Manager::new(outside.folder.path());
    let Some(vm) = start_service(&place, &manager, "400000") else {
        return;
    };
    manager.wait_for("WATCHDOG=1");
    for name in ["vcpu0", "control"] {
        let held = hold_until_told(&vm, &manager, name);
        // Nothing new is told while it hangs; on a slow machine others may answer late.
        drop(held);
        let messages = manager.wait_for("WATCHDOG=1");
        let (_, before) = messages.split_last().unwrap();
        assert!(!before.iter().any(|message| message.contains("WATCHDOG=1")));
    }
    stop(&place, vm);
}
