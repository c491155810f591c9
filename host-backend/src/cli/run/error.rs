//! Why a VM could not be started, and the exit code of each reason.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::cli::{Exit, Failure};
use crate::control::ServerError;
use crate::devices::net::TapError;
use crate::devices::recovery::RecoveryDeviceError;
use crate::machine::{DaemonError, InitramfsError, MachineError};
use crate::regions::RegionsError;
use crate::size::Size;
use crate::vmm::VmError;
use crate::vmm::loader::LoaderError;
use crate::vmm::memory::MemoryError;
use crate::vmm::vm::MAX_VCPUS;

/// Why a VM could not be started, beyond what its parts say themselves.
#[derive(Debug, Error)]
pub enum RunError {
    /// More memory than there is.
    #[error(
        "the guest's memory and window together ({wanted}) are more than this machine has \
         ({available}): reduce --memory or --window"
    )]
    TooMuchMemory {
        /// RAM and window.
        wanted: Size,
        /// Memory and swap of the host.
        available: Size,
    },
    /// More memory than this process may use: it would be killed later.
    #[error(
        "the guest's memory and window together ({wanted}) are more than this process may use \
         ({limit}, {}): raise that limit (MemoryMax= of its systemd unit, --memory of its container), \
         or reduce --memory or --window", .file.display()
    )]
    ControlGroup {
        /// RAM and window.
        wanted: Size,
        /// The limit of the control group.
        limit: Size,
        /// The file that says so.
        file: PathBuf,
    },
    /// A number of vCPUs that is invalid.
    #[error("{0} vCPUs are not possible: give 1 to {MAX_VCPUS} with --vcpus")]
    Vcpus(u32),
    /// A pool without frames.
    #[error("with a pool of 0 frames the guest cannot write: give at least 1 to --pool")]
    NoPool,
    /// The pool leaves no room for pages.
    #[error(
        "a pool of {pool} frames is too large for a window of {window}: give at most {most} to \
         --pool, or more to --window"
    )]
    PoolTooLarge {
        /// Frames of the pool.
        pool: u32,
        /// The window.
        window: Size,
        /// Maximum number of frames that a pool can have in this window.
        most: u64,
    },
    /// The window is too small for any pool, or for its own.
    #[error("a window of {window} is too small: give at least {least} to --window")]
    WindowTooSmall {
        /// The window.
        window: Size,
        /// The smallest that is enough.
        least: Size,
    },
    /// A size that is not a number of huge pages.
    #[error("with --hugepages, {option} must be a multiple of 2M, and {size} is not")]
    NotHugePages {
        /// The option.
        option: &'static str,
        /// The size.
        size: Size,
    },
    /// A pool that is not a number of huge pages.
    #[error("with --hugepages, give multiples of {step} frames to --pool, not {pool}")]
    PoolNotHugePages {
        /// Frames of the pool.
        pool: u32,
        /// Frames in a huge page.
        step: u64,
    },
    /// Too few huge pages are free.
    #[error(
        "RAM and window need {needed} huge pages of 2M, and this machine has {free} free: reserve \
         more with `sudo sysctl vm.nr_hugepages=NUMBER`, or run without --hugepages"
    )]
    HugePages {
        /// Huge pages that are needed.
        needed: u64,
        /// Huge pages that are free.
        free: u64,
    },
    /// More devices than there are places.
    #[error(
        "{count} disks, shared folders and other daemons are too many: a VM has room for {most} of \
         them beside its network card"
    )]
    TooManyDaemons {
        /// Those that were asked for.
        count: usize,
        /// Those that there is room for.
        most: usize,
    },
    /// No journal takes the console.
    #[error(
        "cannot write the console to the journal: is systemd-journald running? Give a file, or `stdio`"
    )]
    Journal(#[source] io::Error),
    /// The console's file cannot be written.
    #[error("cannot write the console to {}: check the path and its permissions", .path.display())]
    Console {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::TooMuchMemory { .. }
            | RunError::ControlGroup { .. }
            | RunError::HugePages { .. } => Exit::Machine,
            RunError::Vcpus(_)
            | RunError::NoPool
            | RunError::PoolTooLarge { .. }
            | RunError::WindowTooSmall { .. }
            | RunError::NotHugePages { .. }
            | RunError::PoolNotHugePages { .. }
            | RunError::TooManyDaemons { .. }
            | RunError::Journal(_)
            | RunError::Console { .. } => Exit::Usage,
        };
        Self::new(exit, error)
    }
}

impl From<InitramfsError> for Failure {
    fn from(error: InitramfsError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let exit = match error {
            DaemonError::Open { .. }
            | DaemonError::Kind { .. }
            | DaemonError::Refused { .. }
            | DaemonError::Connect { .. }
            | DaemonError::Operators { .. } => Exit::Usage,
            DaemonError::Busy(_) => Exit::Busy,
            DaemonError::NotInstalled(_) | DaemonError::Start { .. } | DaemonError::Host(_) => {
                Exit::Machine
            }
        };
        Self::new(exit, error)
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Vm(error) => error.into(),
            MachineError::Regions(error) => error.into(),
            MachineError::Pool(_) => Self::new(Exit::Machine, error),
            MachineError::Recovery(error) => error.into(),
            MachineError::Host(error) => error.into(),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let exit = match error {
            ServerError::Busy(_) => Exit::Busy,
            ServerError::NoSocket(_) | ServerError::Bind { .. } => Exit::Usage,
            ServerError::Thread(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}

impl From<TapError> for Failure {
    fn from(error: TapError) -> Self {
        let exit = match error {
            TapError::Busy { .. } => Exit::Busy,
            TapError::NoTap { .. }
            | TapError::ManyQueues { .. }
            | TapError::NoDescriptor(..)
            | TapError::Flags { .. } => Exit::Usage,
            TapError::NoDriver(_) | TapError::Rights { .. } | TapError::SetUp { .. } => {
                Exit::Machine
            }
        };
        Self::new(exit, error)
    }
}

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        let exit = match &error {
            VmError::Loader(_) | VmError::Vcpus(_) | VmError::Memory(MemoryError::Size(_)) => {
                Exit::Usage
            }
            VmError::OpenKvm(_)
            | VmError::KvmVersion(_)
            | VmError::Kvm { .. }
            | VmError::Memory(_)
            | VmError::Cpu(_)
            | VmError::Event { .. }
            | VmError::Thread { .. } => Exit::Machine,
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<LoaderError> for Failure {
    fn from(error: LoaderError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::from(VmError::from(error))
    }
}

impl From<RegionsError> for Failure {
    fn from(error: RegionsError) -> Self {
        let exit = match error {
            RegionsError::Size(_) => Exit::Usage,
            RegionsError::Create { .. } | RegionsError::Map { .. } | RegionsError::Handler(_) => {
                Exit::Machine
            }
        };
        Self::new(exit, error)
    }
}

impl From<RecoveryDeviceError> for Failure {
    fn from(error: RecoveryDeviceError) -> Self {
        let exit = match error {
            RecoveryDeviceError::Limits(_) => Exit::Usage,
            RecoveryDeviceError::RegionSize { .. } => Exit::Failure,
            RecoveryDeviceError::Host(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}
