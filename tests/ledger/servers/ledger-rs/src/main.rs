//! The ledger server in Rust, with the protocol of `ledger.c` (see `docs/demo.md`).
//!
//! State is in domains, one for each user and one for the directory. Each request runs in [`vmsrs::Domain::run`]. Some
//! handlers have bugs, marked `BUG`: those of unsafe Rust, and panics.
//!
//! A request's writes outside of domains are not undone. Here that is a partial answer, which [`Session::run`] drops.

mod commands;
mod notes;
mod state;
mod sums;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use vmsrs::{App, Domain, Options, Protection, Request, RunError};

use crate::commands::{Command, Context};
use crate::state::{Directory, Name, User};

/// Longest line of a request in bytes.
const LINE_MAX: u64 = 65_536;
/// How long requests wait for a lock: longer than the default, for machines that are emulated and overloaded.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let port = std::env::args().nth(1).unwrap_or_else(|| "7878".to_owned());
    match serve(&port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ledger-rs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &str) -> Result<(), Box<dyn std::error::Error>> {
    let server: &'static Server = Box::leak(Box::new(Server::open()?));
    if server.app.protection() != Protection::Full {
        eprintln!("ledger-rs: no VMSRS here: nothing is restored after an error");
    }
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    let port = listener.local_addr()?.port();
    eprintln!("ledger-rs: ready on port {port}");
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("ledger-rs: accept: {error}");
                continue;
            }
        };
        std::thread::Builder::new().spawn(move || {
            // An error here means that the client has disconnected.
            let _ = Session::new(server).serve(&stream);
        })?;
    }
    Ok(())
}

/// The state that all connections share, in ordinary memory.
struct Server {
    app: &'static App,
    directory: &'static Domain,
    /// Users that this process knows, with their domains.
    accounts: Mutex<Vec<(Name, &'static Domain)>>,
    boot_id: String,
    served: AtomicU64,
    failed: AtomicU64,
}

impl Server {
    fn open() -> Result<Self, Box<dyn std::error::Error>> {
        // SAFETY: the handlers may be cut short: they lend nothing to other threads, and own only
        // what is in domains.
        let app = unsafe { App::open("ledger")? };
        let directory = app.domain("/directory")?;
        let names = directory.run(Directory::open)?;
        let accounts = names
            .into_iter()
            .map(|name| Ok((name, app.domain(name.as_str())?)))
            .collect::<Result<_, vmsrs::Error>>()?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            app,
            directory,
            accounts: Mutex::new(accounts),
            boot_id: boot_id.trim().to_owned(),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    fn find(&self, name: &str) -> Option<(Name, &'static Domain)> {
        let accounts = self
            .accounts
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        accounts
            .iter()
            .find(|(known, _)| known.as_str() == name)
            .copied()
    }

    fn find_or_add(&self, name: Name) -> Result<(Name, &'static Domain), vmsrs::Error> {
        if let Some(account) = self.find(name.as_str()) {
            return Ok(account);
        }
        let account = (name, self.app.domain(name.as_str())?);
        self.accounts
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .push(account);
        Ok(account)
    }
}

/// One connection.
struct Session {
    server: &'static Server,
    account: Option<(Name, &'static Domain)>,
    /// The answer so far. It belongs to the session, so that a request that is cut short does not leak it.
    answer: Vec<u8>,
}

impl Session {
    fn new(server: &'static Server) -> Self {
        Self {
            server,
            account: None,
            answer: Vec::with_capacity(65_536),
        }
    }

    fn serve(&mut self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line)?;
            if line.pop() != Some(b'\n') {
                return Ok(());
            }
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            self.answer.clear();
            let open = match std::str::from_utf8(&line) {
                Ok(line) => self.answer_line(line),
                Err(_) => self.say(format_args!("NO command")),
            };
            self.answer.push(b'\n');
            (&*stream).write_all(&self.answer)?;
            if !open {
                return Ok(());
            }
        }
    }

    fn say(&mut self, words: std::fmt::Arguments<'_>) -> bool {
        // Writing to a vector does not fail.
        let _ = self.answer.write_fmt(words);
        true
    }

    /// Puts the answer to one line into the buffer; false for `QUIT`.
    fn answer_line(&mut self, line: &str) -> bool {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "QUIT" => return !self.say(format_args!("OK bye")),
            "PING" => return self.say(format_args!("OK pong")),
            "STATS" => return self.statistics(),
            "USER" => return self.choose_user(line, argument),
            _ => {}
        }
        let Some(command) = Command::parse(line) else {
            return self.say(format_args!("NO command"));
        };
        let Some(account) = self.account else {
            return self.say(format_args!("NO login"));
        };
        let other = match command {
            Command::Transfer { name, .. } => match self.server.find(name) {
                Some(other) if other.0 != account.0 => Some(other),
                _ => return self.say(format_args!("NO user")),
            },
            _ => None,
        };
        self.run(line, account, other, Some(&command))
    }

    fn choose_user(&mut self, line: &str, name: &str) -> bool {
        let Some(name) = Name::new(name) else {
            return self.say(format_args!("NO name"));
        };
        match self.server.find_or_add(name) {
            Ok(account) => {
                self.account = Some(account);
                self.run(line, account, None, None)
            }
            Err(error) => self.say(format_args!("NO {error}")),
        }
    }

    fn statistics(&mut self) -> bool {
        let server = self.server;
        let protection = match server.app.protection() {
            Protection::Full => "full",
            _ => "none",
        };
        self.say(format_args!(
            "OK pid={} boot={} protection={protection} requests={} failed={}",
            std::process::id(),
            server.boot_id,
            server.served.load(Relaxed),
            server.failed.load(Relaxed)
        ))
    }

    /// Runs one request on the domain of the account and, if there is one, on that of `other`: both are taken in order of
    /// name, so that opposite transfers do not deadlock. Without a command the user is created if it does not exist.
    fn run(
        &mut self,
        line: &str,
        account: (Name, &'static Domain),
        other: Option<(Name, &'static Domain)>,
        command: Option<&Command<'_>>,
    ) -> bool {
        let server = self.server;
        let answer = &mut self.answer;
        let (first, second) = match other {
            Some(other) if other.0 < account.0 => (other, Some(account)),
            _ => (account, other),
        };
        let options = Options {
            lock_timeout: Some(LOCK_TIMEOUT),
            ..Options::default()
        };
        let result = first.1.run_with(&options, |request: &Request| {
            if let Some(second) = second {
                request.enter(second.1)?.keep();
            }
            let mut context = Context {
                request,
                domain: account.1,
                directory: server.directory,
                line,
                answer,
            };
            // SAFETY: the request holds the account's domain, and this is the only reference.
            match (unsafe { User::of(account.1) }, command) {
                (Some(user), Some(command)) => {
                    // SAFETY: it also holds the other domain.
                    let other = other.and_then(|other| unsafe { User::of(other.1) });
                    command.run(&mut context, user, other)
                }
                (Some(user), None) => context.say(format_args!("OK user={}", user.name.as_str())),
                (None, None) => {
                    User::create(request, account.0, server.directory)?;
                    context.say(format_args!("OK user={}", account.0.as_str()))
                }
                (None, Some(_)) => context.say(format_args!("NO user")),
            }
        });
        server.served.fetch_add(1, Relaxed);
        let Err(error) = result else {
            return true;
        };
        server.failed.fetch_add(1, Relaxed);
        self.answer.clear();
        match error {
            RunError::Failed(failure) => self.say(format_args!(
                "ERR {} incident={} recovery_ns={}",
                failure.kind,
                failure.incident,
                failure.recovery.as_nanos()
            )),
            RunError::GivenUp(error) | RunError::Refused(error) => {
                let mut words = String::new();
                let _ = write!(words, "NO {error}");
                self.say(format_args!("{}", words.replace('\n', " ")))
            }
        }
    }
}
