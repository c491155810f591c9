//! The guests with the server, with and without VMSRS, and the loads against them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use vmsrs_bed::{Flavour, Job, project, shell_quote};
use vmsrs_ledger::arguments::arguments;
use vmsrs_ledger::guest::image::{Parts, network, start};
use vmsrs_ledger::guest::watch::{self, Found};
use vmsrs_ledger::program::{self, Server};
use vmsrs_report::steps::Steps;

use crate::cli::LoadArgs;
use crate::guest::Loaded;

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// Without VMSRS.
    Plain,
    /// With it.
    Protected,
}

impl Half {
    /// The image's name in the job's folder.
    fn image(self) -> &'static str {
        match self {
            Self::Plain => "baseline.img",
            Self::Protected => "guest.img",
        }
    }
}

/// The clock of the KVM host and its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// This machine's.
    Machine,
    /// One that counts instructions: measurements are the same on every machine.
    Instructions,
}

impl Clock {
    /// Those of the guests: with a clock that counts instructions the host has one CPU, on which several would wait for each
    /// other.
    fn vcpus(self) -> u32 {
        match self {
            Self::Machine => 2,
            Self::Instructions => 1,
        }
    }
}

/// The images of both guests, and what runs them.
pub(crate) struct Guests {
    parts: Parts,
    folder: PathBuf,
}

impl Guests {
    /// Fetches and builds everything that the guests need, into `folder`.
    ///
    /// # Errors
    ///
    /// When something can be neither fetched nor built.
    pub(crate) fn prepare(steps: &Steps, folder: &Path, server: Server) -> Result<Self> {
        let parts = Parts::prepare(steps, Flavour::DEFAULT)?;

        let step = steps.begin("build the servers");
        let plain = program::plain(folder, &[])?;
        let library = project::built("libvmsrs.a")?;
        let protected = server.build(folder, &[&library])?;
        step.end("with and without VMSRS");

        let step = steps.begin("pack the guests");
        let init = format!(
            "{}{}\n\
             echo \"init: the server ended with code $?\"\n\
             while sleep 60; do :; done\n",
            network(),
            start()
        );
        let protected = parts.image(&protected)?.module_file(&parts.driver);
        for (half, image) in [
            (Half::Plain, parts.image(&plain)?),
            (Half::Protected, protected),
        ] {
            image
                .init(&init)
                .write(&parts.kernel, &folder.join(half.image()))?;
        }
        step.end("stock Debian, busybox, server");
        Ok(Self {
            parts,
            folder: folder.to_owned(),
        })
    }

    /// `nested` or `direct`.
    pub(crate) fn accelerator(&self) -> &'static str {
        self.parts.bed.accelerator().name()
    }

    /// Release of the guests' kernel.
    pub(crate) fn kernel_release(&self) -> &str {
        self.parts.kernel.release()
    }

    /// Runs the named loads, each against its own guest, one after the other in one session of the KVM host.
    ///
    /// # Errors
    ///
    /// When one of them cannot be completed.
    pub(crate) fn run(
        &self,
        steps: &Steps,
        loads: &[(String, Half, LoadArgs)],
        limit: Duration,
        clock: Clock,
    ) -> Result<Found<Loaded>> {
        let script = loads.iter().map(|(name, half, load)| {
            let image = half.image();
            format!(
                "vmsrs-demo guest --name {} --kernel vmlinux --initramfs {image} --vcpus {} {}",
                shell_quote(name),
                clock.vcpus(),
                arguments(load).join(" ")
            )
        });
        let mut job = Job::script(script.collect::<Vec<_>>().join(" && "))
            .program(project::own_program(), "vmsrs-demo")
            .program(project::built("vmsrs")?, "vmsrs")
            .file(self.parts.kernel.vmlinux()?, "vmlinux")
            .timeout(limit);
        for half in [Half::Plain, Half::Protected] {
            job = job.file(self.folder.join(half.image()), half.image());
        }
        if clock == Clock::Instructions {
            job = job.deterministic();
        }
        watch::run(&self.parts.bed, &job, steps, &self.folder)
    }
}
