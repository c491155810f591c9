//! Load for servers that speak memcached's text protocol, and what CPU time it costs them.
//!
//! A client with several connections sends a command on each and then reads all answers, again and again. So a server
//! finds several connections ready, as it does under load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmsrs::App;
use vmsrs_bed::process;

use super::random::Random;

/// Where the servers listen, in the guest.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 11211);

/// Connections of the client.
const CONNECTIONS: usize = 8;

/// How long a server may take to listen; it takes less than a second.
const START_LIMIT: Duration = Duration::from_secs(600);

/// A running server; killed when dropped.
pub(super) struct Server {
    process: Child,
    connections: Vec<BufReader<TcpStream>>,
}

/// Which commands a client sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) keys: u64,
    pub(super) value_bytes: usize,
    /// Percentage of commands that set a value; the others get one.
    pub(super) writes_percent: u32,
}

impl Server {
    /// Starts the server and connects to it.
    pub(super) fn start(command: &[&str]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("a server's command")?;
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let mut server = Self {
            process,
            connections: Vec::new(),
        };
        let start = Instant::now();
        while server.connections.len() < CONNECTIONS {
            match TcpStream::connect(ADDRESS) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    server.connections.push(BufReader::new(stream));
                }
                Err(error) => {
                    if let Some(status) = server.process.try_wait()? {
                        anyhow::bail!("{program} ended with {status}");
                    }
                    ensure!(
                        start.elapsed() < START_LIMIT,
                        "{program} does not listen: {error}"
                    );
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        process::let_others_run().context("SCHED_BATCH")?;
        Ok(server)
    }

    /// Its number in the kernel.
    pub(super) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Nanoseconds of CPU time that the server's threads have had, in user mode and in the kernel.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        process::cpu_ns(self.process.id()).context("the server's CPU time")
    }

    /// Sets all keys.
    pub(super) fn fill(&mut self, load: Load) -> Result<()> {
        let value = vec![b'v'; load.value_bytes];
        let connection = &mut self.connections[0];
        for key in 0..load.keys {
            send_set(connection, key, &value)?;
            expect_line(connection, "STORED")?;
        }
        Ok(())
    }

    /// Gets all keys, so that their pages are mapped as in a server that runs for a while: sealing has unmapped those that
    /// were just set.
    pub(super) fn read_all(&mut self, load: Load) -> Result<()> {
        // Commits of all apps are sealed in order.
        // SAFETY: there are no requests of this app.
        unsafe { App::open("load") }?.flush()?;
        let mut value = vec![0; load.value_bytes];
        let connection = &mut self.connections[0];
        for key in 0..load.keys {
            send_get(connection, key)?;
            expect_value(connection, &mut value)?;
        }
        Ok(())
    }

    /// Sends at least `commands` commands and checks their answers; returns how many it sent.
    pub(super) fn run(&mut self, load: Load, commands: u32, random: &mut Random) -> Result<u32> {
        let mut sent = 0;
        let mut value = vec![0; load.value_bytes];
        while sent < commands {
            let mut sets = [false; CONNECTIONS];
            for (connection, set) in self.connections.iter_mut().zip(&mut sets) {
                let key = random.next() % load.keys;
                *set = random.next() % 100 < u64::from(load.writes_percent);
                if *set {
                    value.fill(b'a' + (random.next() % 26) as u8);
                    send_set(connection, key, &value)?;
                } else {
                    send_get(connection, key)?;
                }
            }
            for (connection, set) in self.connections.iter_mut().zip(sets) {
                match set {
                    true => expect_line(connection, "STORED")?,
                    false => expect_value(connection, &mut value)?,
                }
            }
            sent += CONNECTIONS as u32;
        }
        Ok(sent)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn send_get(connection: &mut BufReader<TcpStream>, key: u64) -> Result<()> {
    let command = format!("get key-{key:08}\r\n");
    Ok(connection.get_mut().write_all(command.as_bytes())?)
}

fn send_set(connection: &mut BufReader<TcpStream>, key: u64, value: &[u8]) -> Result<()> {
    let mut command = format!("set key-{key:08} 0 0 {}\r\n", value.len()).into_bytes();
    command.extend_from_slice(value);
    command.extend_from_slice(b"\r\n");
    Ok(connection.get_mut().write_all(&command)?)
}

fn expect_line(connection: &mut impl BufRead, expected: &str) -> Result<()> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    ensure!(
        line.trim_end() == expected,
        "{expected} expected, not {line:?}"
    );
    Ok(())
}

/// Reads the answer to a `get` of a key that is there, whose value has the length of `value`.
fn expect_value(connection: &mut BufReader<TcpStream>, value: &mut [u8]) -> Result<()> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let length = line.trim_end().rsplit(' ').next();
    ensure!(
        line.starts_with("VALUE ") && length == Some(&value.len().to_string()),
        "a value of {} bytes expected, not {line:?}",
        value.len()
    );
    connection.read_exact(value)?;
    ensure!(value.iter().all(|byte| *byte == value[0]), "a torn value");
    expect_line(connection, "")?;
    expect_line(connection, "END")
}
