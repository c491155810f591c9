//! The guests with the server, with and without VMSRS, and the loads that are made against them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vmsrs_bed::{Bed, Job, Kernel, Series, project};

use crate::build::{built, compile};
use crate::cli::{LoadArgs, Server};
use crate::machine::{GUEST, PORT};
use crate::steps::Steps;
use crate::watch::{Ended, Watch};

/// Which of the two servers.
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

/// Images of both guests, and what runs them.
pub(crate) struct Guests {
    bed: Bed,
    kernel: Kernel,
    folder: PathBuf,
}

impl Guests {
    /// Fetches and builds everything that the guests need, into `folder`.
    ///
    /// # Errors
    ///
    /// When something can be neither fetched nor built.
    pub(crate) fn prepare(steps: &Steps, folder: &Path, server: Server) -> Result<Self> {
        let step = steps.begin("fetch Debian's kernels");
        let detail = steps.clone();
        let bed = Bed::with_progress(Arc::new(move |message| detail.detail(message)))?;
        let kernel = bed.kernel(Series::V6_1)?;
        step.end(kernel.release());

        let step = steps.begin("build the driver");
        let modules = bed.modules(&kernel)?;
        step.end("vmsrs.ko");

        let step = steps.begin("build the servers");
        let servers = Servers::build(folder, server)?;
        step.end("with and without VMSRS");

        let step = steps.begin("pack the guests");
        let init = format!(
            "ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n\
             ledger {PORT}\n\
             echo \"init: the server ended with code $?\"\n\
             while sleep 60; do :; done\n"
        );
        let image = bed.image()?.modules(["virtio_mmio", "virtio_net"]);
        let plain = image.clone().binary(&servers.plain, "/bin/ledger");
        plain
            .init(&init)
            .write(&kernel, &folder.join(Half::Plain.image()))?;
        let protected = image
            .module_file(&modules.driver)
            .binary(&servers.protected, "/bin/ledger");
        protected
            .init(&init)
            .write(&kernel, &folder.join(Half::Protected.image()))?;
        step.end("stock Debian, busybox, server");
        Ok(Self {
            bed,
            kernel,
            folder: folder.to_owned(),
        })
    }

    /// `nested` or `direct`.
    pub(crate) fn accelerator(&self) -> &'static str {
        self.bed.accelerator().name()
    }

    /// Release of the guests' kernel.
    pub(crate) fn kernel_release(&self) -> &str {
        self.kernel.release()
    }

    /// Makes the loads, each with its name and against a guest of its own, one after the other in
    /// one session of the KVM host.
    ///
    /// # Errors
    ///
    /// When one of them cannot be made to its end.
    pub(crate) fn run(
        &self,
        steps: &Steps,
        loads: &[(String, Half, LoadArgs)],
        limit: Duration,
    ) -> Result<Ended> {
        let script: Vec<String> = loads
            .iter()
            .map(|(name, half, load)| {
                format!(
                    "vmsrs-demo guest --name '{name}' --kernel vmlinux --initramfs {} {}",
                    half.image(),
                    load.to_arguments().join(" ")
                )
            })
            .collect();
        let mut job = Job::script(script.join(" && "))
            .program(project::own_program(), "vmsrs-demo")
            .program(built("vmsrs")?, "vmsrs")
            .file(self.kernel.vmlinux()?, "vmlinux")
            .timeout(limit);
        for half in [Half::Plain, Half::Protected] {
            job = job.file(self.folder.join(half.image()), half.image());
        }
        let mut watch = Watch::new(steps, &self.folder, self.accelerator())?;
        let ended = self.bed.run(&job, |event| watch.event(event))?;
        steps.clear();
        watch.end(ended.code)
    }
}

/// The server, built both ways.
struct Servers {
    plain: PathBuf,
    protected: PathBuf,
}

impl Servers {
    /// Compiles the C server; the Rust one, which `make build` has compiled, stands in for the
    /// protected half where it is wanted.
    fn build(folder: &Path, server: Server) -> Result<Self> {
        let plain = folder.join("ledger-plain");
        compile(&plain, &["-DPLAIN".as_ref()])?;
        let protected = match server {
            Server::Rust => built("ledger-rs")?,
            Server::C => {
                let program = folder.join("ledger");
                let include = project::root().join("guest-lib/include");
                let library = built("libvmsrs.a")?;
                compile(&program, &["-I".as_ref(), &include, &library])?;
                program
            }
        };
        Ok(Self { plain, protected })
    }
}
