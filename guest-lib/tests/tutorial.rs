//! The servers of docs/tutorial.md do what it says, without a device.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a server to listen or to answer.
const LIMIT: Duration = Duration::from_secs(300);

/// A server in a directory of its own; it is killed when this is dropped.
struct Server {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(program: &Path, folder: tempfile::TempDir) -> Self {
        // The servers do not report their port, so they are given one that was free just before.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let process = Command::new(program)
            .arg(port.to_string())
            .current_dir(folder.path())
            .env("VMSRS_DEVICE", "none")
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self {
            process,
            port,
            folder,
        }
    }

    fn connect(&mut self) -> Connection {
        let start = Instant::now();
        loop {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return Connection(BufReader::new(stream));
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}");
            assert!(start.elapsed() < LIMIT, "the server does not listen");
            // A socket of another process that starts to listen causes no event here.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    /// The answer to a line; empty when the server closes the connection.
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        match self.0.read_line(&mut answer) {
            Ok(_) => answer.trim_end().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
            Err(error) => panic!("{line}: {error}"),
        }
    }
}

/// The directory of this build.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_path_buf()
}

/// Compiles a server of the tutorial with warnings as errors, and starts it.
fn compile(source: &str, flags: &[&str]) -> Server {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("server");
    let output = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-O2", "-pthread", "-I"])
        .arg(root.join("include"))
        .arg(root.join("../docs/tutorial").join(source))
        .args(flags)
        .args(["-ldl", "-lm", "-o"])
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("cc: {error}; install build-essential"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Server::start(&program, folder)
}

#[test]
fn server_without_vmsrs_dies_of_its_bug() {
    let mut server = compile("lists-plain.c", &[]);
    let mut alice = server.connect();
    let mut bob = server.connect();
    assert_eq!(
        alice.ask("alice set 0 milk"),
        "ok 0 milk, (null), (null), (null)"
    );
    assert_eq!(bob.ask("bob set 0 tea"), "ok 0 tea, (null), (null), (null)");
    assert_eq!(alice.ask("alice save"), "");
    assert!(!server.process.wait().unwrap().success());
    assert!(server.folder.path().join("alice.partial").exists());
}

/// Checks that a ported server survives its bugs; `bug` is the kind of the first one, `none` an empty slot.
fn check_survival(server: &mut Server, bug: &str, none: &str) {
    let mut alice = server.connect();
    let mut bob = server.connect();
    let rest = format!("{none}, {none}, {none}");
    assert_eq!(alice.ask("alice set 0 milk"), format!("ok 0 milk, {rest}"));
    assert_eq!(bob.ask("bob set 0 tea"), format!("ok 0 tea, {rest}"));
    assert_eq!(
        alice.ask("alice save"),
        format!("failed: {bug}, incident 1")
    );
    let files = std::fs::read_dir(server.folder.path()).unwrap();
    let partial = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".partial");
    assert!(
        !files
            .map(|file| file.unwrap().file_name())
            .any(|name| partial(&name))
    );
    assert_eq!(
        alice.ask("alice append 0 eggs"),
        "failed: red zone, incident 2"
    );
    assert_eq!(bob.ask("bob show"), format!("ok 0 tea, {rest}"));
    assert!(server.process.try_wait().unwrap().is_none());
}

#[test]
fn ported_server_survives_its_bugs() {
    let library = target().join("libvmsrs.a");
    let mut server = compile("lists.c", &[library.to_str().unwrap()]);
    check_survival(&mut server, "memory", "(null)");
}

#[test]
fn rust_server_survives_its_bugs() {
    let program = target().join("../examples/lists");
    assert!(
        program.exists(),
        "cargo builds examples only without a filter on targets: run `cargo build --example lists`"
    );
    let mut server = Server::start(&program, tempfile::tempdir().unwrap());
    check_survival(&mut server, "panic", "-");
}

/// The lines of `text` without indentation and empty lines.
fn lines(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// The excerpts in C of a page are from its source; there are at least so many.
fn check_excerpts(page: &str, source: &str, least: usize) {
    let source = lines(source);
    let excerpts = page.split("```c\n").skip(1);
    let excerpts: Vec<_> = excerpts
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(excerpts.len() >= least, "{} excerpts", excerpts.len());
    for excerpt in excerpts {
        assert!(
            source.contains(&lines(excerpt)),
            "not in the source:\n{excerpt}"
        );
    }
}

/// A file of this project.
fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn excerpts_in_the_tutorial_are_from_its_server() {
    let source = read("../docs/tutorial/lists.c");
    check_excerpts(&read("../docs/tutorial.md"), &source, 6);
}

#[test]
fn excerpts_of_an_allocator_are_from_its_test() {
    let page = read("../docs/porting.md");
    let (_, page) = page.split_once("### Keep it: slabs").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    check_excerpts(page, &read("tests/c/slabs.c"), 5);
}
