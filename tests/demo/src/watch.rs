//! What is told while loads are made on the KVM host.

use std::path::Path;

use anyhow::{Context, Result, bail};
use vmsrs_bed::Event;

use crate::guest::{Done, Message};
use crate::log::Log;
use crate::steps::{Step, Steps};

/// Follows the job on the KVM host.
pub(crate) struct Watch<'a> {
    steps: &'a Steps,
    accelerator: &'static str,
    log: Log,
    step: Option<Step<'a>>,
    guest: String,
    done: Vec<Done>,
    trouble: Option<String>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(steps: &'a Steps, folder: &Path, accelerator: &'static str) -> Result<Self> {
        Ok(Self {
            steps,
            accelerator,
            log: Log::create(folder)?,
            step: Some(steps.begin(match accelerator {
                "direct" => "start on this machine's KVM",
                _ => "boot a KVM host in QEMU",
            })),
            guest: String::new(),
            done: Vec::new(),
            trouble: None,
        })
    }

    pub(crate) fn event(&mut self, event: Event<'_>) {
        if let Some(message) = self.log.message(event) {
            self.message(message);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Booting(name) => {
                self.next(self.accelerator, format!("boot the guest {name}"));
                self.guest = name;
            }
            Message::Ready { .. } => {
                self.next(
                    "the server answers",
                    format!("load the server {}", self.guest),
                );
            }
            Message::Progress(progress) => self.steps.counts(&progress),
            Message::Done(done) => {
                let how = match &done.outcome.died {
                    Some(death) => format!("died at request {}", death.at_request),
                    None => format!("answered {} requests", done.outcome.requests),
                };
                self.next(&how, "stop the guest".to_owned());
                self.done.push(*done);
            }
            Message::Trouble(words) => self.trouble = Some(words),
        }
    }

    fn next(&mut self, how: &str, name: String) {
        if let Some(step) = self.step.take() {
            step.end(how);
        }
        self.step = Some(self.steps.begin(name));
    }

    /// What the loads found, if the job ended with code 0.
    ///
    /// # Errors
    ///
    /// When it did not, or there was trouble.
    pub(crate) fn end(self, code: i32) -> Result<Ended> {
        let log = self.log.path().display();
        if let Some(trouble) = self.trouble {
            bail!("the guest {}: {trouble}; the log is {log}", self.guest);
        }
        if code != 0 {
            bail!("the run on the KVM host ended with code {code}; the log is {log}");
        }
        Ok(Ended { done: self.done })
    }
}

/// What all loads found.
#[derive(Debug)]
pub(crate) struct Ended {
    done: Vec<Done>,
}

impl Ended {
    /// Takes out what the load with that name found.
    ///
    /// # Errors
    ///
    /// When it told nothing.
    pub(crate) fn take(&mut self, name: &str) -> Result<Done> {
        let place = self.done.iter().position(|done| done.name == name);
        let place = place.with_context(|| format!("the load \"{name}\" has told no result"))?;
        Ok(self.done.remove(place))
    }
}
