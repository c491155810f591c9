//! Runs a job's process: its standard output is the result stream, its standard error the console.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::command;
use crate::error::{Error, Result};
use crate::job::{Event, Outcome};
use crate::patience;

/// The line of the result stream from which the job's time limit counts.
pub(crate) const START_MARK: &str = "@start";

/// Starts the line of the result stream that carries the exit code.
pub(crate) const EXIT_MARK: &str = "@exit ";

/// How long the host may take to start the job; the nested one boots in about ten seconds.
const START_LIMIT: Duration = Duration::from_secs(1800);

/// How long to wait for lines of a process that has been killed.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How many of the last console lines outcomes and errors quote.
const CONSOLE_LINES: usize = 40;

/// Kills the process and its group when it goes out of scope.
struct KillOnDrop(Child);

impl KillOnDrop {
    fn kill(&mut self) {
        // Once it has been waited for, its PID may have been reused.
        if let Ok(None) = self.0.try_wait() {
            let kill = format!("kill -KILL -{}", self.0.id());
            let _ = Command::new("sh").args(["-c", &kill]).status();
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A time limit that starts when it is created.
struct Deadline {
    from: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self {
            from: Instant::now(),
            limit,
        }
    }

    fn rest(&self) -> Duration {
        self.limit.saturating_sub(self.from.elapsed())
    }
}

enum Line {
    Console(String),
    Result(String),
}

/// Runs `process`, passes its lines on as they arrive, and takes the exit code from the result stream. `positions` tells
/// where a process is that has not ended in time, before it is killed.
///
/// # Errors
///
/// [`Error::Timeout`] when the job has not ended `limit` after its start (the process is then killed), [`Error::Died`] when it
/// ended without an exit code.
pub(crate) fn run(
    mut process: Command,
    limit: Duration,
    on_event: &mut dyn FnMut(Event<'_>),
    positions: &dyn Fn() -> String,
) -> Result<Outcome> {
    let begin = Instant::now();
    let mut deadline = Deadline::after(patience::scaled(START_LIMIT));
    // A group of its own, so that what it starts can be killed with it.
    process.process_group(0);
    process
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = process
        .spawn()
        .map_err(|source| command::spawn_error(&process, source))?;
    let mut child = KillOnDrop(child);
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = child.0.stdout.take() {
        forward(stdout, sender.clone(), Line::Result);
    }
    if let Some(stderr) = child.0.stderr.take() {
        forward(stderr, sender, Line::Console);
    }

    let mut code = None;
    let mut results = Vec::new();
    let mut console = VecDeque::new();
    loop {
        match lines.recv_timeout(deadline.rest()) {
            Ok(Line::Console(line)) => {
                on_event(Event::Console(&line));
                remember(&mut console, line);
            }
            Ok(Line::Result(line)) => {
                if line == START_MARK {
                    deadline = Deadline::after(limit);
                } else if let Some(number) = line.strip_prefix(EXIT_MARK) {
                    code = number.trim().parse().ok();
                } else {
                    on_event(Event::Result(&line));
                    results.push(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let positions = positions();
                child.kill();
                // What it wrote before may still arrive; a process that left its group may keep the streams open.
                while let Ok(line) = lines.recv_timeout(DRAIN_LIMIT) {
                    if let Line::Console(line) = line {
                        on_event(Event::Console(&line));
                        remember(&mut console, line);
                    }
                }
                return Err(Error::Timeout {
                    after: deadline.limit,
                    console: join(&console),
                    positions,
                });
            }
            // Both streams have ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child
        .0
        .wait()
        .map_err(|source| command::spawn_error(&process, source))?;
    let code = code.ok_or_else(|| Error::Died {
        status,
        console: join(&console),
    })?;
    Ok(Outcome {
        code,
        results,
        console: console.into(),
        elapsed: begin.elapsed(),
    })
}

/// Sends the lines of `stream`, from a thread that ends with the stream.
fn forward(stream: impl Read + Send + 'static, lines: Sender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        for bytes in BufReader::new(stream).split(b'\n') {
            let Ok(bytes) = bytes else { return };
            let line = String::from_utf8_lossy(&bytes);
            // Terminals end lines with a carriage return too.
            if lines
                .send(kind(line.trim_end_matches('\r').to_owned()))
                .is_err()
            {
                return;
            }
        }
    });
}

/// Keeps `line` as one of the last lines of the console.
fn remember(console: &mut VecDeque<String>, line: String) {
    if console.len() == CONSOLE_LINES {
        console.pop_front();
    }
    console.push_back(line);
}

fn join(lines: &VecDeque<String>) -> String {
    lines
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        process: Command,
        limit: Duration,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        super::run(process, limit, on_event, &String::new)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_and_exit_code_come_on_their_streams() {
        let mut seen = Vec::new();
        let process = shell("echo one; echo hello >&2; echo two; echo '@exit 3'");
        let outcome = run(process, Duration::MAX, &mut |event| {
            seen.push(match event {
                Event::Console(line) => format!("console {line}"),
                Event::Result(line) => format!("result {line}"),
            });
        })
        .unwrap();
        assert_eq!((outcome.code, outcome.success()), (3, false));
        assert_eq!(outcome.results, ["one", "two"]);
        assert_eq!(outcome.console, ["hello"]);
        seen.sort();
        assert_eq!(seen, ["console hello", "result one", "result two"]);
    }

    #[test]
    fn a_job_that_hangs_is_killed_and_its_last_lines_are_told() {
        let process = shell("echo waiting >&2; echo @start; sleep 600; true");
        let positions = || "\nin sleep".to_owned();
        let limit = Duration::from_millis(50);
        let error = super::run(process, limit, &mut |_| (), &positions).unwrap_err();
        assert!(
            matches!(&error, Error::Timeout { console, .. } if console == "waiting"),
            "{error}"
        );
        assert!(error.to_string().ends_with("waiting\nin sleep"), "{error}");
    }

    #[test]
    fn an_end_without_an_exit_code_is_an_error() {
        let error = run(shell("echo oops >&2; exit 1"), Duration::MAX, &mut |_| ()).unwrap_err();
        assert!(
            matches!(&error, Error::Died { console, .. } if console == "oops"),
            "{error}"
        );
    }
}
