//! This machine's side: follows a job on the KVM host that works with guests.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vmsrs_bed::{Bed, Job};
use vmsrs_report::steps::{Step, Steps};

use super::log::Log;
use super::message::{Finding, Message};

/// The results of each guest of a job.
#[derive(Debug)]
pub struct Found<F>(Vec<(String, F)>);

impl<F> Found<F> {
    /// Takes out the result of the guest with that name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn take(&mut self, name: &str) -> Result<F> {
        let place = self.0.iter().position(|(of, _)| of == name);
        let place = place.with_context(|| format!("missing result of the guest {name}"))?;
        Ok(self.0.remove(place).1)
    }
}

/// Runs the job and shows its progress; `folder` gets the console's log.
///
/// # Errors
///
/// When the job fails.
pub fn run<F: Finding>(bed: &Bed, job: &Job, steps: &Steps, folder: &Path) -> Result<Found<F>> {
    let mut log = Log::create(folder)?;
    let mut watch = Watch::new(steps, bed.accelerator().name());
    let ended = bed.run(job, |event| {
        if let Some(message) = log.message(event) {
            watch.message(message);
        }
    });
    steps.clear();
    let path = log.path().display();
    if let Some(trouble) = watch.trouble {
        bail!("the guest {}: {trouble}; the log is {path}", watch.guest);
    }
    let code = ended?.code;
    if code != 0 {
        bail!("the job on the KVM host ended with code {code}; the log is {path}");
    }
    Ok(Found(watch.found))
}

struct Watch<'a, F> {
    steps: &'a Steps,
    step: Option<Step<'a>>,
    accelerator: &'static str,
    guest: String,
    /// When the server first answered.
    ready: Instant,
    found: Vec<(String, F)>,
    trouble: Option<String>,
}

impl<'a, F: Finding> Watch<'a, F> {
    fn new(steps: &'a Steps, accelerator: &'static str) -> Self {
        Self {
            steps,
            step: Some(steps.begin(match accelerator {
                "direct" => "start on this machine's KVM",
                _ => "boot a KVM host in QEMU",
            })),
            accelerator,
            guest: String::new(),
            ready: Instant::now(),
            found: Vec::new(),
            trouble: None,
        }
    }

    fn message(&mut self, message: Message<F::Progress, F>) {
        match message {
            Message::Booting(name) => {
                self.end(self.accelerator);
                self.step = Some(self.steps.begin(format!("boot the guest {name}")));
                self.guest = name;
            }
            Message::Ready => {
                self.end("the server answers");
                let name = format!("load the server {}", self.guest);
                self.step = Some(self.steps.begin(name));
                self.ready = Instant::now();
            }
            Message::Progress(progress) => {
                self.steps.count(&F::count(&progress, self.ready.elapsed()));
            }
            Message::Done(found) => {
                self.end(&found.summary());
                self.found.push((self.guest.clone(), found));
            }
            Message::Trouble(words) => self.trouble = Some(words),
        }
    }

    fn end(&mut self, how: &str) {
        if let Some(step) = self.step.take() {
            step.end(how);
        }
    }
}
