//! The load and the model against the plain C server on this machine.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vmsrs_demo::load::{self, Options};
use vmsrs_demo::outcome::Outcome;

/// A running server; killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(program: &Path) -> Self {
        let mut process = Command::new(program)
            .arg("0")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = lines
            .find_map(|line| line.ok()?.rsplit_once("ready on port ")?.1.parse().ok())
            .expect("the server says its port");
        // Nobody reads what it says from here on, but its pipe must not close.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles the C server without VMSRS.
fn plain_server(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../servers/ledger.c");
    let program = folder.join("ledger-plain");
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-DPLAIN"])
        .arg("-o")
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(status.success());
    program
}

fn load_against(name: &str, faults: bool) -> Outcome {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let server = Server::start(&plain_server(&folder));
    let options = Options {
        address: server.address,
        users: 50,
        connections: 16,
        requests: 4000,
        faults,
        seed: 3,
        reply_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(60),
    };
    load::run(&options, |_| ()).unwrap()
}

#[test]
fn ordinary_requests_leave_every_byte_as_the_model_says() {
    let outcome = load_against("ordinary", false);
    assert_eq!(
        outcome.broken_promises(),
        [""; 0],
        "{:?}",
        outcome.complaints
    );
    assert!(outcome.requests >= 4000 && outcome.bytes_compared > 5000);
}

#[test]
fn the_plain_server_dies_of_the_faults() {
    let outcome = load_against("fatal", true);
    let death = outcome.died.as_ref().expect("the server died");
    assert!((1..=outcome.requests).contains(&death.at_request));
    assert_eq!(outcome.server_restarts, 1);
    assert!(!outcome.broken_promises().is_empty());
}

#[test]
fn a_server_that_is_not_there_is_told_in_one_sentence() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let options = Options {
        address,
        users: 2,
        connections: 2,
        requests: 40,
        faults: false,
        seed: 0,
        reply_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(1),
    };
    let error = load::run(&options, |_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no ledger answers at 127.0.0.1:1 (connecting); start it first"
    );
}
