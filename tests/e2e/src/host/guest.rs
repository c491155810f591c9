//! A guest with its agent, as behaviours use it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs_bed::guest::{self, Config, Control};

use super::connection::{Connection, Listener};
use super::console::Console;
use crate::Machine;
use crate::agent::{Answer, Ask};
use crate::limits::REPORT_LIMIT;

/// The tap: its name, and the host's address with the network's prefix.
const TAP: &str = "tap0,192.168.77.1/24";
/// How often a guest may go down on a machine that restarts it; far more than all behaviours need.
const RESTARTS: u32 = 100;

/// A running guest with its agent.
pub struct Guest {
    machine: guest::Guest,
    agent: Connection,
    listener: Listener,
    console: Console,
    behaviour: &'static str,
}

impl Guest {
    /// Boots a guest and waits for its agent.
    ///
    /// # Errors
    ///
    /// When the agent does not connect; the error has the ends of the logs.
    pub(super) fn boot(machine: Machine) -> Result<Self> {
        let config = Config::new("vmlinux", "guest.img").tap(TAP);
        let config = match machine {
            Machine::Usual | Machine::Hostile => config.pool(1024),
            Machine::Restarting => config.pool(1024).restarts(RESTARTS),
            Machine::SmallWindow => config.window("9M").pool(256),
            Machine::LargeWindow => config.window("256M").pool(1024),
        };
        let listener = Listener::new()?;
        let mut machine = config.boot()?;
        let agent = listener.wait(&mut machine);
        let agent = agent.map_err(|error| error.context(machine.logs()))?;
        Ok(Self {
            agent,
            listener,
            console: Console::new(machine.console_log()),
            machine,
            behaviour: "",
        })
    }

    /// The behaviour whose steps the agent runs from now on.
    pub(super) fn set_behaviour(&mut self, name: &'static str) {
        self.behaviour = name;
    }

    /// Runs a step of the behaviour in the guest, in a process of its own. The answer says how it ended.
    ///
    /// # Errors
    ///
    /// When the agent cannot be reached any more: the guest or the VMM went down or hangs.
    pub fn step(&mut self, step: &str, argument: &str) -> Result<Answer> {
        self.ask(step, argument)?;
        self.agent
            .receive(&mut self.machine, &self.listener)
            .with_context(|| format!("step {step}"))
    }

    /// Runs a step that takes the guest down, and waits for the agent of the guest's next boot.
    ///
    /// # Errors
    ///
    /// When the step ends with an answer, or the guest does not come up again.
    pub fn run_down(&mut self, step: &str, argument: &str) -> Result<()> {
        self.ask(step, argument)?;
        self.listener
            .wait_for_next(&mut self.machine, &mut self.agent)
            .map(|agent| self.agent = agent)
            .with_context(|| format!("step {step}"))
    }

    fn ask(&mut self, step: &str, argument: &str) -> Result<()> {
        self.agent.send(&Ask {
            behaviour: self.behaviour.to_owned(),
            step: step.to_owned(),
            argument: argument.to_owned(),
        })
    }

    /// Runs a step that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// When the step fails, with everything it printed.
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

    /// Runs steps without an argument, in order; each must succeed.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn run_steps(&mut self, steps: &[&str]) -> Result<()> {
        steps
            .iter()
            .try_for_each(|step| self.run(step, "").map(drop))
    }

    /// The control socket of the machine.
    pub fn control(&self) -> &Control {
        self.machine.control()
    }

    /// The recovery engine's part of `vmsrs status`.
    ///
    /// # Errors
    ///
    /// As [`Control::status`].
    pub fn recovery_status(&self) -> Result<Value> {
        Ok(self.control().status()?["recovery"].take())
    }

    /// The process of the VMM.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// All facts about one incident. Waits for it, since the driver reports it after the request has got its number.
    ///
    /// # Errors
    ///
    /// As [`Control::query`], and when it does not come.
    pub fn incident(&mut self, number: &str) -> Result<Value> {
        self.incident_with(number, &[], |_| true)
    }

    /// All facts about one incident, as `vmsrs incidents NUMBER OPTIONS` prints them. Waits until it is there and
    /// `complete`.
    ///
    /// # Errors
    ///
    /// As [`Guest::incident`].
    pub fn incident_with(
        &mut self,
        number: &str,
        options: &[&str],
        complete: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let wanted: u64 = number.parse().context("the number of an incident")?;
        let what = format!("incident {number}");
        let arguments = [&["incidents", number], options].concat();
        self.machine.wait(&what, REPORT_LIMIT, |machine| {
            let mut list = machine.control().incidents()?.into_iter();
            if !list.any(|incident| incident["number"] == wanted) {
                return Ok(None);
            }
            let facts = machine.control().query(&arguments)?;
            Ok(complete(&facts).then_some(facts))
        })
    }

    /// The incidents of one kind, oldest first, each with all its facts.
    ///
    /// # Errors
    ///
    /// As [`Control::query`].
    pub fn incidents(&self, kind: &str) -> Result<Vec<Value>> {
        let list = self.control().incidents()?.into_iter();
        list.filter(|incident| incident["kind"] == kind)
            .map(|incident| {
                let number = incident["number"].to_string();
                Ok(self.control().query(&["incidents", &number])?)
            })
            .collect()
    }

    /// Accepts that the guest's kernel complains with `text` on its console, which the behaviour provokes on purpose.
    pub fn expect_complaint(&mut self, text: &'static str) {
        self.console.expect(text);
    }

    /// Fails if the guest's kernel has complained since the last check.
    pub(super) fn check_console(&mut self) -> Result<()> {
        self.console.check()
    }

    /// What the VMM has logged so far.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(self.machine.log()?)
    }

    /// The ends of the VMM's log and of the guest's console, for messages.
    pub(super) fn logs(&self) -> String {
        self.machine.logs()
    }

    /// Stops the machine as an operator does. It must end well, and its kernel must not have complained.
    pub(super) fn stop(mut self) -> Result<()> {
        let stopped = self.machine.stop();
        stopped.with_context(|| self.logs())?;
        self.check_console()
    }
}
