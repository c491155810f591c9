//! `vmsrs metrics --listen`, as a monitoring system sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use super::{FAILURE, Place, assert_sentence, vmsrs};

/// A server; ended when dropped.
struct Metrics {
    process: Child,
    address: String,
}

impl Metrics {
    fn start(socket: &str) -> Self {
        let mut command = vmsrs();
        command.args(["metrics", "--listen", "127.0.0.1:0", "--socket", socket]);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut errors = BufReader::new(process.stderr.take().unwrap());
        errors.read_line(&mut said).unwrap();
        let (_, rest) = said.split_once("http://").expect(&said);
        let address = rest.strip_suffix("/metrics\n").expect(&said).to_owned();
        Self { process, address }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_monitoring_system_gets_the_metrics_and_nothing_else() {
    let place = Place::new();
    let metrics = Metrics::start(&place.path("web.sock"));
    let answer = metrics.ask("GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    // That it is not there is said, not an error.
    assert!(answer.contains("\nvmsrs_up{vm=\"web\"} 0\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    assert!(metrics.ask("GET /").starts_with("HTTP/1.1 404 "));
    assert!(metrics.ask("POST /metrics").starts_with("HTTP/1.1 405 "));
    // A client that talks nonsense, or that goes away, does not end it.
    drop(TcpStream::connect(&metrics.address).unwrap());
    let _ = metrics.ask("nonsense");
    assert!(metrics.ask("HEAD /metrics").starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_address_that_is_not_free_is_an_error() {
    let place = Place::new();
    let metrics = Metrics::start(&place.path("web.sock"));
    let mut second = vmsrs();
    let second = second.args(["metrics", "--listen", &metrics.address]);
    let output = second.output().unwrap();
    assert_sentence(&output, FAILURE, &[&metrics.address, "in use"]);
}
