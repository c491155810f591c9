//! The test-bed: everything is fetched, and the way to run guests is chosen.

use std::path::PathBuf;
use std::sync::Arc;

use crate::accelerator::Accelerator;
use crate::cache::Cache;
use crate::error::Result;
use crate::flavour::Flavour;
use crate::image::Image;
use crate::job::{Event, Job, Outcome};
use crate::kernel::{Kernel, Series};
use crate::program::Program;
use crate::release::Release;
use crate::{direct, kmod, nested, project, tools};

/// Receives a short line for each step that takes time.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// A KVM host to run jobs on, with Debian kernels to boot as guests.
///
/// It is cheap to clone. Jobs may run at the same time from several threads.
///
/// ```no_run
/// # fn main() -> Result<(), vmsrs_bed::Error> {
/// use vmsrs_bed::{Bed, Event, Job};
///
/// let bed = Bed::auto()?;
/// let job = Job::script(r#"test -c /dev/kvm && echo yes >>"$VMSRS_RESULTS""#);
/// let outcome = bed.run(&job, |event| {
///     if let Event::Console(line) = event {
///         eprintln!("{line}");
///     }
/// })?;
/// assert!(outcome.success());
/// assert_eq!(outcome.results, ["yes"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bed {
    cache: Cache,
    accelerator: Accelerator,
    progress: Progress,
}

impl Bed {
    /// The test-bed of this machine: fetches what is missing and chooses the accelerator; progress goes to standard error.
    ///
    /// # Errors
    ///
    /// The same as [`Bed::with_progress`].
    pub fn auto() -> Result<Self> {
        Self::with_progress(Arc::new(|message| eprintln!("bed: {message}")))
    }

    /// The same as [`Bed::auto`] with progress going to `progress`.
    ///
    /// # Errors
    ///
    /// When this is not a supported Debian, when packages or tools are missing and cannot be installed, and when `VMSRS_BED`
    /// asks for something unavailable.
    pub fn with_progress(progress: Progress) -> Result<Self> {
        Release::of_machine()?;
        let accelerator = Accelerator::choose()?;
        tools::ensure(tools::UNPACK, &*progress)?;
        let cache = Cache::fetch(&project::cache(), false, &*progress)?;
        Ok(Self {
            cache,
            accelerator,
            progress,
        })
    }

    /// What runs the guests of jobs that are neither [`Job::deterministic`] nor [`Job::on_system`].
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// A Debian kernel, to boot as a guest.
    ///
    /// # Errors
    ///
    /// When the cache is damaged.
    pub fn kernel(&self, series: Series) -> Result<Kernel> {
        self.cache.kernel(series)
    }

    /// A kernel to boot as a guest: Debian's, or the debug kernel, which is built when it is not in the cache.
    ///
    /// # Errors
    ///
    /// When the cache is damaged, and when the debug kernel cannot be fetched or built.
    pub fn guest_kernel(&self, flavour: Flavour) -> Result<Kernel> {
        match flavour {
            Flavour::Stock(series) => self.kernel(series),
            Flavour::Debug => {
                tools::ensure(tools::KERNEL, &*self.progress)?;
                self.cache.debug_kernel(&*self.progress)
            }
        }
    }

    /// The driver and the test modules for a kernel, built when their sources have changed.
    ///
    /// # Errors
    ///
    /// When they do not build without warnings.
    pub fn modules(&self, kernel: &Kernel) -> Result<kmod::Modules> {
        tools::ensure(&tools::kmod(&kernel.compiler()?), &*self.progress)?;
        kmod::build(kernel, &*self.progress)
    }

    /// An image with busybox, for a guest.
    ///
    /// # Errors
    ///
    /// When the cache is damaged.
    pub fn image(&self) -> Result<Image> {
        Ok(Image::new().busybox(self.cache.busybox()?))
    }

    /// The program of the Debian package of that name, for guests; fetched when it is not in the cache.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched.
    pub fn program(&self, name: &str) -> Result<Program> {
        self.cache.program(name, &*self.progress)
    }

    /// A program of another Debian package, for the KVM host or guests; fetched when it is not in the cache.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched.
    pub fn program_of(&self, package: &str, name: &str) -> Result<Program> {
        self.cache.program_of(package, name, &*self.progress)
    }

    /// `virtiofsd`, for the KVM host; built from its crate when it is not in the cache, since Debian 12 has no package of it.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or built.
    pub fn virtiofsd(&self) -> Result<PathBuf> {
        self.cache.virtiofsd(&*self.progress)
    }

    /// Allocators of Debian's that replace the C library's, for guests: the name of each, and its shared library; fetched when
    /// neither the machine nor the cache has them.
    ///
    /// # Errors
    ///
    /// When one cannot be fetched.
    pub fn allocators(&self) -> Result<Vec<(&'static str, PathBuf)>> {
        self.cache.allocators(&*self.progress)
    }

    /// The unpacked source of a Debian package (of Debian 12), with Debian's patches; fetched when it is not in the cache. It
    /// is shared: whoever changes it makes a copy.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or unpacked.
    pub fn source(&self, package: &str) -> Result<PathBuf> {
        tools::ensure(tools::SOURCES, &*self.progress)?;
        self.cache.source(package, &*self.progress)
    }

    /// The static busybox, for what is not an [`Image`].
    ///
    /// # Errors
    ///
    /// When the cache is damaged.
    pub fn busybox(&self) -> Result<PathBuf> {
        self.cache.busybox()
    }

    /// Runs a job on the KVM host and waits for its end; `on_event` gets each line of console and results as it arrives.
    ///
    /// The job leaves nothing on this machine, however it or this process ends.
    ///
    /// # Errors
    ///
    /// When the job cannot be started, exceeds its time limit, or the host goes down. A non-zero exit code of the job is not
    /// an error here: see [`Outcome::code`].
    pub fn run(&self, job: &Job, mut on_event: impl FnMut(Event<'_>)) -> Result<Outcome> {
        job.check()?;
        let is_nested = job.deterministic || job.system.is_some();
        if self.accelerator == Accelerator::Direct && !is_nested {
            return direct::run(job, &mut on_event);
        }
        tools::ensure(tools::NESTED, &*self.progress)?;
        let qemu = self.cache.qemu();
        if qemu.is_installed() {
            tools::ensure(tools::QEMU, &*self.progress)?;
        }
        nested::run(
            &qemu,
            &self.kernel(job.host_series)?,
            self.image()?,
            job,
            &mut on_event,
        )
    }
}
