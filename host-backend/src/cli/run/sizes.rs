//! Checks of sizes and numbers before anything is made.

use std::fs;

use super::{Arguments, RunError};
use crate::cli::{Exit, Failure};
use crate::engine::{ConfigError, EngineConfig};
use crate::size::Size;
use crate::vmm::memory::Layout;
use crate::vmm::vm::MAX_VCPUS;
use crate::window::Window;

/// Checks the sizes; returns the engine's limits.
pub(super) fn check(arguments: &Arguments) -> Result<EngineConfig, Failure> {
    if !(1..=MAX_VCPUS).contains(&arguments.vcpus) {
        return Err(RunError::Vcpus(arguments.vcpus).into());
    }
    Layout::new(arguments.memory.0)?;
    let frames = Window::frames_of_size(arguments.window.0)?;
    let mut engine = EngineConfig::for_window(frames);
    if let Some(pool) = arguments.pool {
        engine.pool_frames = pool;
    }
    if engine.pool_frames == 0 && arguments.pool.is_some() {
        return Err(RunError::NoPool.into());
    }
    engine.page_frames().map_err(|error| match error {
        ConfigError::WindowTooSmall { needed, .. } => {
            let window = arguments.window;
            // What is needed beside the pool.
            let rest = needed - u64::from(engine.pool_frames);
            match arguments.pool {
                Some(pool) if rest < frames.into() => Failure::from(RunError::PoolTooLarge {
                    pool,
                    window,
                    most: u64::from(frames) - rest,
                }),
                _ => RunError::WindowTooSmall { window }.into(),
            }
        }
        error => Failure::new(Exit::Usage, error),
    })?;
    if let Some(available) = host_memory() {
        // Neither is above 2^44: the sum fits.
        let wanted = Size(arguments.memory.0 + arguments.window.0);
        if wanted > available {
            return Err(RunError::TooMuchMemory { wanted, available }.into());
        }
    }
    Ok(engine)
}

/// Memory and swap of this machine, if known.
fn host_memory() -> Option<Size> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let total = kibibytes("MemTotal:")? + kibibytes("SwapTotal:").unwrap_or(0);
    Some(Size(total << 10))
}
