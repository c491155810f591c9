//! Why a VM could not be started, and the exit code of each reason.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::cli::{Exit, Failure};
use crate::control::ServerError;
use crate::devices::net::TapError;
use crate::devices::recovery::RecoveryDeviceError;
use crate::machine::{InitramfsError, MachineError};
use crate::size::Size;
use crate::vmm::VmError;
use crate::vmm::loader::LoaderError;
use crate::vmm::memory::MemoryError;
use crate::vmm::vm::MAX_VCPUS;
use crate::window::WindowError;

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
    #[error("a window of {window} is too small: give at least 1M to --window")]
    WindowTooSmall {
        /// The window.
        window: Size,
    },
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
            RunError::TooMuchMemory { .. } => Exit::Machine,
            RunError::Vcpus(_)
            | RunError::NoPool
            | RunError::PoolTooLarge { .. }
            | RunError::WindowTooSmall { .. }
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

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Vm(error) => error.into(),
            MachineError::Window(error) => error.into(),
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
            TapError::NoTap { .. } => Exit::Usage,
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

impl From<WindowError> for Failure {
    fn from(error: WindowError) -> Self {
        let exit = match error {
            WindowError::Size(_) | WindowError::Limits(_) => Exit::Usage,
            WindowError::Create { .. } | WindowError::Map(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}

impl From<RecoveryDeviceError> for Failure {
    fn from(error: RecoveryDeviceError) -> Self {
        let exit = match error {
            RecoveryDeviceError::Limits(_) => Exit::Usage,
            RecoveryDeviceError::WindowSize { .. } => Exit::Failure,
            RecoveryDeviceError::Host(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}
