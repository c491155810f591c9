//! The host's side: boots guests with `vmsrs run`, runs behaviours, tells the results.
//!
//! It runs in the job folder of the test-bed, which has `vmsrs`, `vmlinux` and `guest.img`.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::agent::{Answer, Ask};
use crate::behaviours;
use crate::console::Console;
use crate::{Behaviour, Machine};

/// Address of the host on the tap, with the network's prefix.
const HOST_ADDRESS: &str = "192.168.77.1";
/// Port where the host waits for the guest's agent.
const PORT: u16 = 7000;
/// How long a report may take from the driver to the host.
const REPORT_LIMIT: Duration = Duration::from_secs(60);
/// A boot takes about 10 s in the nested test-bed; this is for a machine with much else to do.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Longest that one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// The variable of the environment that says how many times as long the guest may take as on a stock kernel.
pub const SLOWNESS: &str = "VMSRS_E2E_SLOWNESS";

/// A running virtual machine with its agent.
pub struct Guest {
    vm: Child,
    folder: PathBuf,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    /// Where the agent comes to in every boot.
    listener: TcpListener,
    behaviour: &'static str,
    console: Console,
}

impl Guest {
    /// Boots a virtual machine and waits for its agent.
    fn boot(machine: Machine) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("vmsrs-e2e-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("vmsrs.log"))?;
        let (window, pool) = match machine {
            Machine::Usual | Machine::Hostile | Machine::Restarting => ("64M", "1024"),
            Machine::SmallWindow => ("7M", "256"),
        };
        let on_reboot = match machine {
            Machine::Restarting => "restart",
            // A guest that goes down without being asked to is lost.
            _ => "exit",
        };
        let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listen for the agent")?;
        listener.set_nonblocking(true)?;
        let mut vm = Command::new("vmsrs")
            .args(["run", "--kernel", "vmlinux", "--initramfs", "guest.img"])
            .args(["--memory", "512M", "--vcpus", "2"])
            .args(["--window", window, "--pool", pool])
            .args(["--on-reboot", on_reboot, "--restarts", "100"])
            .args(["--tap", &format!("tap0,{HOST_ADDRESS}/24")])
            .arg("--socket")
            .arg(folder.join("vm.sock"))
            .arg("--console")
            .arg(folder.join("console.log"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start vmsrs")?;
        let agent = wait_for_agent(&listener, &mut vm, None);
        match agent {
            Ok(stream) => Ok(Self {
                vm,
                reader: BufReader::new(stream.try_clone()?),
                writer: stream,
                listener,
                behaviour: "",
                console: Console::new(folder.join("console.log")),
                folder,
            }),
            Err(error) => {
                let _ = vm.kill();
                let _ = vm.wait();
                Err(error.context(logs(&folder)))
            }
        }
    }

    /// Runs a step of the behaviour in the guest, in a process of its own; how it ended is in the
    /// answer.
    ///
    /// # Errors
    ///
    /// When the agent cannot be reached any more: the guest or the VMM went down or hangs.
    pub fn step(&mut self, step: &str, argument: &str) -> Result<Answer> {
        self.ask(step, argument)?;
        let mut answer = String::new();
        let read = self
            .reader
            .read_line(&mut answer)
            .with_context(|| format!("no answer from the guest for step {step}"))?;
        ensure!(read > 0, "the guest hung up in step {step}");
        Ok(serde_json::from_str(&answer)?)
    }

    /// Runs a step that takes the guest down, and waits for the agent of the guest's next boot.
    ///
    /// # Errors
    ///
    /// When the step ends with an answer, or the guest does not come up again.
    pub fn run_down(&mut self, step: &str, argument: &str) -> Result<()> {
        self.ask(step, argument)?;
        let stream = wait_for_agent(&self.listener, &mut self.vm, Some(&mut self.reader))
            .with_context(|| format!("step {step}"))?;
        self.reader = BufReader::new(stream.try_clone()?);
        self.writer = stream;
        Ok(())
    }

    /// Asks the agent for a step.
    fn ask(&mut self, step: &str, argument: &str) -> Result<()> {
        let ask = Ask {
            behaviour: self.behaviour.to_owned(),
            step: step.to_owned(),
            argument: argument.to_owned(),
        };
        let mut line = serde_json::to_string(&ask)?;
        line.push('\n');
        self.writer
            .write_all(line.as_bytes())
            .context("the agent hung up")
    }

    /// Runs a step that must end well, and returns what it printed.
    ///
    /// # Errors
    ///
    /// When the step fails, with all that it said.
    pub fn run(&mut self, step: &str, argument: &str) -> Result<String> {
        let answer = self.step(step, argument)?;
        ensure!(
            answer.success(),
            "step {step} ended with code {:?}, signal {:?}\n{}{}",
            answer.code,
            answer.signal,
            answer.output,
            answer.errors
        );
        Ok(answer.output)
    }

    /// What a `vmsrs` command that reaches the running machine says with `--json`.
    ///
    /// # Errors
    ///
    /// When the command fails or does not print JSON.
    pub fn vmsrs(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.show(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("vmsrs {arguments:?} printed no JSON"))
    }

    /// What a `vmsrs` command that reaches the running machine prints.
    ///
    /// # Errors
    ///
    /// When the command fails.
    pub fn show(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("vmsrs")
            .args(arguments)
            .arg("--socket")
            .arg(self.folder.join("vm.sock"))
            .output()
            .context("start vmsrs")?;
        ensure!(
            output.status.success(),
            "vmsrs {arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// How a `vmsrs` command that reaches the running machine ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn exit_code(&self, arguments: &[&str]) -> Result<Option<i32>> {
        let status = Command::new("vmsrs")
            .args(arguments)
            .arg("--socket")
            .arg(self.folder.join("vm.sock"))
            .stdout(Stdio::null())
            .status()
            .context("start vmsrs")?;
        Ok(status.code())
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.vm.id()
    }

    /// All facts of one incident. The driver reports it after the request has got its number: waits for that.
    ///
    /// # Errors
    ///
    /// As [`Guest::vmsrs`], and when it does not come.
    pub fn incident(&self, number: &str) -> Result<Value> {
        let wanted = number.parse().ok();
        let start = Instant::now();
        loop {
            let list = self.vmsrs(&["incidents"])?;
            let mut list = list.as_array().context("a list of incidents")?.iter();
            if list.any(|incident| incident["number"].as_u64() == wanted) {
                return self.vmsrs(&["incidents", number]);
            }
            ensure!(
                start.elapsed() < patience(REPORT_LIMIT),
                "incident {number} does not come"
            );
        }
    }

    /// The incidents of one kind, oldest first, each with all its facts.
    ///
    /// # Errors
    ///
    /// As [`Guest::vmsrs`].
    pub fn incidents(&self, kind: &str) -> Result<Vec<Value>> {
        let list = self.vmsrs(&["incidents"])?;
        list.as_array()
            .context("a list of incidents")?
            .iter()
            .filter(|incident| incident["kind"] == kind)
            .map(|incident| self.vmsrs(&["incidents", &incident["number"].to_string()]))
            .collect()
    }

    /// Says that the behaviour brings the guest's kernel to complain with `text` on its console: no sign of a fault in
    /// the driver then.
    pub fn expect_complaint(&mut self, text: &'static str) {
        self.console.expected.push(text);
    }

    /// What the VMM has written to its log so far.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.folder.join("vmsrs.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Ends the machine as an operator would, by SIGTERM, and sees that it ends well.
    fn stop(mut self) -> Result<()> {
        // SAFETY: plain system call; the child has not been waited for, so its number is its own.
        unsafe { libc::kill(self.vm.id() as libc::pid_t, libc::SIGTERM) };
        let status = self.vm.wait()?;
        let complaint = self.console.check();
        let logs = logs(&self.folder);
        let _ = fs::remove_dir_all(&self.folder);
        ensure!(status.success(), "vmsrs run ended with {status}\n{logs}");
        complaint
    }
}

/// `limit`, or longer for a kernel that is slower.
fn patience(limit: Duration) -> Duration {
    let slowness = std::env::var(SLOWNESS).ok();
    limit * slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The ends of the console's and the VMM's logs, for messages.
fn logs(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for name in ["vmsrs.log", "console.log"] {
        let content = fs::read(folder.join(name)).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content.lines().collect();
        let _ = writeln!(text, "--- {name}");
        for line in &lines[lines.len().saturating_sub(60)..] {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// Waits for the agent's connection while the machine lives, and its last one (`old`) is silent.
fn wait_for_agent(
    listener: &TcpListener,
    vm: &mut Child,
    mut old: Option<&mut BufReader<TcpStream>>,
) -> Result<TcpStream> {
    let start = Instant::now();
    let limit = patience(BOOT_LIMIT);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience(STEP_LIMIT)))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("wait for the agent"),
        }
        if let Some(status) = vm.try_wait()? {
            bail!("vmsrs run ended with {status} before the guest was up");
        }
        let Some(rest) = limit.checked_sub(start.elapsed()) else {
            bail!("the guest did not come up in {limit:?}");
        };
        let stream = old.as_ref().map(|reader| reader.get_ref());
        if poll_readable(listener, stream, rest.min(Duration::from_millis(500)))?
            && let Some(reader) = old.take()
        {
            let mut answer = String::new();
            // A connection that breaks is no answer: that guest has gone.
            if reader.read_line(&mut answer).is_ok_and(|read| read > 0) {
                bail!("the guest answered and did not go down: {answer}");
            }
        }
    }
}

/// Waits until the listener has a connection or the stream (if there is one) something to read, or
/// for `limit`; whether it is the stream.
fn poll_readable(
    listener: &TcpListener,
    stream: Option<&TcpStream>,
    limit: Duration,
) -> Result<bool> {
    use std::os::fd::AsRawFd;
    let poll = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // A negative descriptor is left out.
    let stream = stream.map_or(-1, AsRawFd::as_raw_fd);
    let mut fds = [poll(listener.as_raw_fd()), poll(stream)];
    // SAFETY: `fds` are two valid pollfds for the time of the call.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), 2, limit.as_millis() as libc::c_int) };
    ensure!(result >= 0, "poll: {}", std::io::Error::last_os_error());
    Ok(fds[1].revents != 0)
}

/// Writes a line to the results of the test-bed, or to standard output without one.
fn tell(value: &Value) -> Result<()> {
    match std::env::var_os("VMSRS_RESULTS") {
        Some(path) => {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(format!("{value}\n").as_bytes())?;
        }
        None => println!("{value}"),
    }
    Ok(())
}

/// Tests the behaviours with these names, all if there are none. Each result is a line
/// `{"behaviour": NAME, "error": null or TEXT}`.
///
/// # Errors
///
/// When results cannot be told; a behaviour that fails is a result.
pub fn run_all(names: &[&str]) -> Result<()> {
    for machine in [
        Machine::Usual,
        Machine::SmallWindow,
        Machine::Hostile,
        Machine::Restarting,
    ] {
        let chosen: Vec<&'static Behaviour> = behaviours::ALL
            .iter()
            .copied()
            .filter(|b| b.machine == machine && (names.is_empty() || names.contains(&b.name)))
            .collect();
        let mut guest = None;
        for behaviour in chosen {
            eprintln!("behaviour: {}", behaviour.name);
            let result = test(&mut guest, behaviour);
            let error = result.err().map(|error| format!("{error:?}"));
            if let Some(text) = &error {
                eprintln!("{text}");
            }
            tell(&json!({"behaviour": behaviour.name, "error": error}))?;
        }
        if let Some(guest) = guest {
            let error = guest.stop().err().map(|error| format!("{error:?}"));
            tell(&json!({"behaviour": format!("end of {machine:?}"), "error": error}))?;
        }
    }
    Ok(())
}

/// Tests one behaviour on the guest that runs, or on a new one where there is none or it is lost.
fn test(slot: &mut Option<Guest>, behaviour: &'static Behaviour) -> Result<()> {
    if slot.is_none() {
        *slot = Some(Guest::boot(behaviour.machine)?);
    }
    let guest = slot.as_mut().context("a guest was booted")?;
    guest.behaviour = behaviour.name;
    let result = (behaviour.host)(guest).and_then(|()| guest.console.check());
    if result.is_err() {
        // The next behaviour gets a machine of its own; what this one left tells what happened.
        let mut lost = slot.take().context("a guest was booted")?;
        let _ = lost.vm.kill();
        let _ = lost.vm.wait();
        let logs = logs(&lost.folder);
        let _ = fs::remove_dir_all(&lost.folder);
        return result.context(logs);
    }
    result
}
