//! The campaign must detect a broken server. Here the server is the plain ledger behind a proxy, which answers requests
//! that would reach a bug with an error, like a perfect VMSRS. Each test then breaks one promise.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use vmsrs_campaign::options::Options;
use vmsrs_campaign::outcome::{KindOutcome, Outcome};
use vmsrs_campaign::run;
use vmsrs_ledger::client::Client;
use vmsrs_ledger::native::Ledger;
use vmsrs_ledger::program;

/// Limit for one answer.
const LIMIT: Duration = Duration::from_secs(120);

/// What the proxy does wrong; numbers are those of the request, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// One error changes the balance of an unrelated user.
    OtherUser(u64),
    /// One failed transfer leaves the money with its receiver.
    Receiver,
    /// One failed request leaves a trace in its own user's state.
    Trace(u64),
    /// One ordinary answer is changed.
    Answer(u64),
    /// One ordinary request fails.
    Failure(u64),
    /// One request has no answer.
    Silence(u64),
    /// The server is killed and loses everything; another one is started.
    Death(u64),
    /// The same, after the last answer of all.
    LastDeath,
    /// One request with an injected error is answered as if there were none.
    Unnoticed(u64),
    /// One failed request leaves something behind on its thread.
    Left(u64),
    /// Requests with an error that need not fail are answered wrong.
    Garbled,
    /// Requests with a deadline that do not reach their error fail, but not by the deadline.
    Unexcused,
    /// The same, but by the deadline.
    Late,
    /// The directory has an unknown user, except at the end.
    Ghost,
    /// Errors in requests of several threads are detected only by the deadline.
    Overdue,
}

/// The state of a connection.
#[derive(Default)]
struct Session {
    /// It is past the last user that the campaign reads back at the end.
    at_the_end: bool,
    /// The creation of its user has failed.
    no_user: bool,
}

struct Proxy {
    wrong: Wrong,
    program: PathBuf,
    ledger: std::sync::Mutex<Ledger>,
    errors: AtomicU64,
    null_writes: AtomicU64,
    masks: AtomicU64,
    answers: AtomicU64,
}

impl Proxy {
    /// Starts a ledger and a proxy in front of it; returns the proxy and its address.
    fn start(folder: &str, wrong: Wrong) -> (Arc<Self>, SocketAddr) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let program = program::plain(&folder, &[]).unwrap();
        let proxy = Arc::new(Self {
            wrong,
            ledger: std::sync::Mutex::new(Ledger::start(&program).unwrap()),
            program,
            errors: AtomicU64::new(0),
            null_writes: AtomicU64::new(0),
            masks: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = proxy.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let proxy = shared.clone();
                // The end of the client or of the server ends the connection.
                thread::spawn(move || drop(proxy.serve(&client)));
            }
        });
        (proxy, address)
    }

    fn connect(&self) -> io::Result<Client> {
        Client::connect(self.ledger.lock().unwrap().address(), LIMIT)
    }

    fn ask(server: &mut Client, line: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&server.ask(line)?).into_owned())
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let mut server = self.connect()?;
        client.set_nodelay(true)?;
        let mut session = Session::default();
        let mut arm = None;
        for line in BufReader::new(client).lines() {
            let line = line?;
            if let Some(words) = line.strip_prefix('\u{1}') {
                arm = Some(words.to_owned());
                continue;
            }
            if let Some(arm) = arm.take() {
                let answer = self.armed(&mut server, &mut session, &arm, &line)?;
                (&*client).write_all(format!("{answer}\n").as_bytes())?;
                continue;
            }
            if session.no_user && line == "READ" {
                (&*client).write_all(b"NO user\n")?;
                continue;
            }
            if line.starts_with("USER ") {
                session.no_user = false;
            }
            session.at_the_end |= line == "USER mirror3";
            let quotes = line.strip_prefix("NOTE QUOTE ").is_some_and(|id| {
                has_quotes(&Self::ask(&mut server, "READ").unwrap_or_default(), id)
            });
            let mut answer = if quotes || reaches_a_bug(&line) {
                self.error(&mut server)?
            } else {
                Self::ask(&mut server, &line)?
            };
            if answer.starts_with("OK balance=") {
                let number = self.answers.fetch_add(1, SeqCst) + 1;
                match self.wrong {
                    Wrong::Answer(at) if number == at => answer.push('0'),
                    Wrong::Failure(at) if number == at => {
                        answer = "ERR memory incident=1 recovery_ns=1".to_owned();
                    }
                    Wrong::Silence(at) if number == at => continue,
                    Wrong::Death(at) if number == at => {
                        *self.ledger.lock().unwrap() = Ledger::start(&self.program).unwrap();
                    }
                    _ => {}
                }
            }
            if line == "DIRECTORY" && !session.at_the_end && self.wrong == Wrong::Ghost {
                answer.push_str(" ghost:0:0:0:0:0:0:0:0");
            }
            if line == "DIRECTORY" && session.at_the_end && self.wrong == Wrong::LastDeath {
                *self.ledger.lock().unwrap() = Ledger::start(&self.program).unwrap();
            }
            (&*client).write_all(format!("{answer}\n").as_bytes())?;
        }
        Ok(())
    }

    /// The answer to a request that the injector should make an error in, with the injector's line before it.
    fn armed(
        &self,
        server: &mut Client,
        session: &mut Session,
        arm: &str,
        line: &str,
    ) -> io::Result<String> {
        const FAILED: &str = "ERR memory incident=1 recovery_ns=1";
        let words: Vec<&str> = arm.split(' ').collect();
        let (error, deadline) = (words[2], words[4]);
        if error == "none" {
            return Self::ask(server, line);
        }
        // This error is made only in requests that all pass its point.
        if error == "null-write" && !line.starts_with("USER ") {
            let number = self.null_writes.fetch_add(1, SeqCst) + 1;
            if matches!(self.wrong, Wrong::Unnoticed(at) if number == at) {
                return Ok(format!("\u{1}1 1 0 -\n{}", Self::ask(server, line)?));
            }
        }
        if error == "mask" && !line.starts_with("USER ") {
            let number = self.masks.fetch_add(1, SeqCst) + 1;
            if matches!(self.wrong, Wrong::Left(at) if number == at) {
                return Ok(format!("\u{1}1 1 0 signal-mask\n{FAILED}"));
            }
        }
        if deadline == "400" {
            match self.wrong {
                Wrong::Unexcused => return Ok(format!("\u{1}0 0 0 -\n{FAILED}")),
                Wrong::Late => {
                    return Ok("\u{1}0 0 0 -\nERR deadline incident=1 recovery_ns=1".to_owned());
                }
                _ => {}
            }
        }
        if deadline == "20000" && self.wrong == Wrong::Overdue {
            return Ok("\u{1}1 1 0 -\nERR deadline incident=1 recovery_ns=1".to_owned());
        }
        if let (Wrong::Receiver, Some(transfer)) = (self.wrong, line.strip_prefix("TRANSFER ")) {
            let name = transfer.split(' ').next().unwrap_or_default();
            self.deposit(name)?;
        }
        session.no_user |= line.starts_with("USER ");
        // A write of the kernel is refused, and the request continues, as it does after the end of a child.
        Ok(match error {
            "stray" => format!("\u{1}1 1 1 -\n{}", Self::ask(server, line)?),
            "vfork" if self.wrong == Wrong::Garbled => {
                format!("\u{1}1 1 0 -\n{}0", Self::ask(server, line)?)
            }
            "vfork" => format!("\u{1}1 1 0 -\n{}", Self::ask(server, line)?),
            _ => format!("\u{1}1 1 0 -\n{FAILED}"),
        })
    }

    /// Gives money to a user without being asked to.
    fn deposit(&self, name: &str) -> io::Result<()> {
        let mut stranger = self.connect()?;
        Self::ask(&mut stranger, &format!("USER {name}"))?;
        Self::ask(&mut stranger, "DEPOSIT 1").map(drop)
    }

    /// The answer to a request with an error, which is not passed on to the server.
    fn error(&self, server: &mut Client) -> io::Result<String> {
        let number = self.errors.fetch_add(1, SeqCst) + 1;
        match self.wrong {
            Wrong::OtherUser(at) if number == at => {
                self.deposit("target2")?;
            }
            Wrong::Trace(at) if number == at => {
                Self::ask(server, "DEPOSIT 1")?;
            }
            _ => {}
        }
        Ok("ERR memory incident=1 recovery_ns=1".to_owned())
    }
}

/// Requests that the campaign makes only to reach a bug of the server.
fn reaches_a_bug(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok());
    match words[..] {
        ["NOTE", "EDIT", ..] => number(2) >= Some(900_000),
        ["NOTE", "PAD", ..] => number(3) >= Some(65_536),
        ["NOTE", "JOIN", first, second] | ["NOTE", "DELETE", first, second] => first == second,
        ["NOTE", "AVERAGE", "nothing", ..] => true,
        ["CALC", sum] => sum.starts_with("(((((((("),
        ["TAX", ..] => number(1) > Some(100),
        ["LABEL", ..] => number(1) >= Some(4),
        _ => false,
    }
}

/// Whether the note with this number contains quotes, from the answer to `READ`.
fn has_quotes(dump: &str, wanted: &str) -> bool {
    let Some((_, notes)) = dump.split_once(" notes=") else {
        return false;
    };
    let mut rest = notes.split_once(' ').map_or("", |(_, rest)| rest);
    while let [id, _, length, text] = rest.splitn(4, ':').collect::<Vec<_>>()[..] {
        let (text, next) = text.split_at(length.parse().unwrap());
        if id == wanted {
            return text.contains('"');
        }
        rest = next.trim_start();
    }
    false
}

fn campaign(name: &str, wrong: Wrong) -> Outcome {
    campaign_with(name, wrong, |options| options)
}

/// The same with injected errors, which the proxy simulates.
fn campaign_with_injector(name: &str, wrong: Wrong) -> Outcome {
    campaign_with(name, wrong, |options| Options {
        injector: true,
        restarts: false,
        errors: 300,
        ..options
    })
}

fn campaign_with(name: &str, wrong: Wrong, change: fn(Options) -> Options) -> Outcome {
    let (proxy, address) = Proxy::start(name, wrong);
    let options = change(Options {
        address,
        seed: 5,
        errors: 60,
        users: 8,
        connections: 4,
        injector: false,
        restarts: true,
        only: Vec::new(),
        keys: false,
        host: None,
        reply_timeout: LIMIT,
        outage_limit: LIMIT,
        deadline: Duration::from_secs(1800),
    });
    let outcome = run::run(&options, |_| ()).unwrap();
    // The proxy's threads keep the ledger, which would outlive this process.
    proxy.ledger.lock().unwrap().kill();
    outcome
}

/// The numbers of a verdict: others harmed, crashes, hangs, commits lost.
fn verdict(outcome: &Outcome) -> [u64; 4] {
    [
        outcome.others_harmed,
        outcome.crashes,
        outcome.hangs,
        outcome.commits_lost,
    ]
}

/// Each error that was made has one class.
fn assert_consistent(outcome: &Outcome) {
    let injected: u64 = outcome.kinds.iter().map(|kind| kind.injected).sum();
    assert_eq!(injected, outcome.errors_injected);
    for kind in &outcome.kinds {
        let classes = [
            kind.recovered_right,
            kind.recovered_wrong_answer,
            kind.request_lost,
            kind.no_effect,
            kind.restarted,
            kind.others_harmed,
            kind.crash,
            kind.hang,
        ];
        assert_eq!(classes.iter().sum::<u64>(), kind.injected, "{kind:?}");
    }
}

#[test]
fn losing_only_the_request_keeps_all_promises() {
    let outcome = campaign("nothing", Wrong::Nothing);
    assert_eq!(verdict(&outcome), [0; 4], "{:#?}", outcome.complaints);
    assert!(outcome.errors_injected >= 60);
    assert!(outcome.directories_compared >= 3);
    let lost: u64 = outcome.kinds.iter().map(|kind| kind.request_lost).sum();
    assert!(lost >= 50, "{:#?}", outcome.kinds);
}

#[test]
fn change_of_an_unrelated_user_is_seen() {
    let outcome = campaign("other-user", Wrong::OtherUser(20));
    assert!(outcome.others_harmed > 0);
    // Harm does not count as another error of the suspect.
    assert_consistent(&outcome);
}

#[test]
fn failed_transfer_that_reaches_its_receiver_is_seen() {
    let outcome = campaign_with_injector("receiver", Wrong::Receiver);
    assert!(outcome.others_harmed > 0);
    let blamed = |complaint: &String| complaint.contains("between two requests");
    assert!(
        outcome.complaints.iter().any(blamed),
        "{:#?}",
        outcome.complaints
    );
}

#[test]
fn a_directory_that_is_wrong_for_a_while_is_seen() {
    let outcome = campaign("ghost", Wrong::Ghost);
    assert!(outcome.others_harmed > 0);
}

#[test]
fn a_trace_of_a_failed_request_is_seen() {
    let outcome = campaign("trace", Wrong::Trace(20));
    assert!(outcome.others_harmed > 0);
}

#[test]
fn a_wrong_answer_to_an_ordinary_request_is_seen() {
    let outcome = campaign("answer", Wrong::Answer(20));
    assert!(outcome.others_harmed > 0);
}

#[test]
fn an_ordinary_request_that_fails_is_seen() {
    let outcome = campaign("failure", Wrong::Failure(20));
    assert!(outcome.others_harmed > 0);
}

#[test]
fn a_request_without_an_answer_is_seen() {
    let outcome = campaign_with("silence", Wrong::Silence(20), |options| Options {
        reply_timeout: Duration::from_secs(5),
        ..options
    });
    assert_eq!(outcome.hangs, 1);
    assert_consistent(&outcome);
}

#[test]
fn death_that_loses_commits_is_seen_as_both() {
    let outcome = campaign("death", Wrong::Death(20));
    assert!(
        outcome.crashes > 0 && outcome.commits_lost > 0,
        "{:?}",
        verdict(&outcome)
    );
    assert!(!outcome.trace.is_empty());
    // Errors whose requests were cut off do not count as made, except for the suspect.
    assert_consistent(&outcome);
}

#[test]
fn death_after_the_last_answer_is_seen() {
    let outcome = campaign("last-death", Wrong::LastDeath);
    assert_eq!(verdict(&outcome), [0, 1, 0, 0], "{:?}", outcome.complaints);
}

#[test]
fn a_run_that_is_given_up_breaks_a_promise() {
    let outcome = campaign_with("given-up", Wrong::Nothing, |options| Options {
        deadline: Duration::ZERO,
        ..options
    });
    assert_eq!(verdict(&outcome), [0; 4], "{:#?}", outcome.complaints);
    assert!(outcome.errors_injected < outcome.errors_planned);
    assert_eq!(outcome.broken_promises().len(), 1);
}

#[test]
fn injected_errors_that_lose_only_their_request_are_good() {
    let outcome = campaign_with_injector("injector", Wrong::Nothing);
    assert_eq!(
        outcome.broken_promises(),
        [""; 0],
        "{:#?}",
        outcome.complaints
    );
}

#[test]
fn undetected_error_breaks_a_promise() {
    let outcome = campaign_with_injector("unnoticed", Wrong::Unnoticed(3));
    assert_eq!(verdict(&outcome), [0; 4], "{:#?}", outcome.complaints);
    assert_eq!(outcome.undetected, 1);
    assert_eq!(outcome.broken_promises().len(), 1);
}

#[test]
fn what_stays_behind_on_a_thread_is_harm() {
    let outcome = campaign_with_injector("left", Wrong::Left(1));
    assert_eq!(outcome.others_harmed, 1, "{:#?}", outcome.complaints);
    let harms = |kind: &KindOutcome| kind.others_harmed == 1;
    assert!(outcome.kinds.iter().any(harms));
    assert_consistent(&outcome);
}

#[test]
fn a_wrong_answer_to_a_harmless_error_breaks_a_promise() {
    let outcome = campaign_with_injector("garbled", Wrong::Garbled);
    assert!(outcome.undetected > 0, "{:#?}", outcome.kinds);
}

#[test]
fn armed_deadline_excuses_no_other_failure() {
    let outcome = campaign_with_injector("unexcused", Wrong::Unexcused);
    assert!(outcome.others_harmed > 0);
    let outcome = campaign_with_injector("late", Wrong::Late);
    assert_eq!(verdict(&outcome), [0; 4], "{:#?}", outcome.complaints);
}

#[test]
fn deadline_of_an_error_that_is_not_endless_is_a_hang() {
    let outcome = campaign_with_injector("overdue", Wrong::Overdue);
    assert!(outcome.hangs > 0, "{:#?}", outcome.kinds);
    assert_eq!(verdict(&outcome)[0], 0, "{:#?}", outcome.complaints);
    assert_consistent(&outcome);
}
