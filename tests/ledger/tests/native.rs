//! The load and the model against the plain C server on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use vmsrs_ledger::load::outcome::Outcome;
use vmsrs_ledger::load::{self, Options};
use vmsrs_ledger::native::Ledger;
use vmsrs_ledger::program;

fn load_against(name: &str, faults: bool) -> Outcome {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let server = Ledger::start(&program::plain(&folder, &[]).unwrap()).unwrap();
    let options = Options {
        address: server.address(),
        users: 50,
        connections: 16,
        requests: 4000,
        faults,
        fatal_one_in: 20,
        seed: 3,
        reply_timeout: Duration::from_secs(120),
        deadline: Duration::from_secs(600),
    };
    load::run(&options, |_| ()).unwrap()
}

#[test]
fn ordinary_requests_leave_state_as_modelled() {
    let outcome = load_against("ordinary", false);
    assert_eq!(
        outcome.broken_promises(),
        [""; 0],
        "{:?}",
        outcome.complaints
    );
    assert!(outcome.requests >= 4000 && outcome.bytes_compared > 5000);
    let latencies = &outcome.pace.latencies;
    assert_eq!(latencies.count(), outcome.requests);
    assert!(latencies.median() > Some(0) && latencies.median() <= latencies.percentile(99));
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
fn missing_server_is_one_sentence() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let options = Options {
        address,
        users: 2,
        connections: 2,
        requests: 40,
        faults: false,
        fatal_one_in: 20,
        seed: 0,
        reply_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(1),
    };
    let error = load::run(&options, |_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no new ledger answers at 127.0.0.1:1 (connecting); start one first"
    );
}
