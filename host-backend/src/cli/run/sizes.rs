//! Checks of sizes and numbers before anything is made.

use std::path::Path;

use vmsrs_protocol::PAGE_SIZE;

use super::{Arguments, RunError};
use crate::cli::memory::HostMemory;
use crate::cli::{Exit, Failure};
use crate::engine::{ConfigError, EngineConfig};
use crate::host_memory::{HUGE_PAGE, HostPages, free_huge_pages};
use crate::regions::frames_of_size;
use crate::size::Size;
use crate::vmm::memory::Layout;
use crate::vmm::vm::MAX_VCPUS;

/// Checks the sizes; returns the engine's limits.
pub(super) fn check(arguments: &Arguments) -> Result<EngineConfig, Failure> {
    if !(1..=MAX_VCPUS).contains(&arguments.vcpus) {
        return Err(RunError::Vcpus(arguments.vcpus).into());
    }
    Layout::new(arguments.memory.0)?;
    let pages = pages(arguments);
    check_pages(arguments, pages)?;
    let frames = frames_of_size(arguments.window.0)?;
    // More than all would only hide what is wrong.
    let pool = arguments.pool.map(|pool| pool.min(frames));
    let engine = limits(frames, pool, pages);
    if arguments.pool == Some(0) {
        return Err(RunError::NoPool.into());
    }
    engine.page_frames().map_err(|error| match error {
        ConfigError::WindowTooSmall { needed, .. } => {
            let window = arguments.window;
            // What is needed beside the pool and as many frames of the vault.
            let pool = u64::from(engine.pool_frames);
            let rest = needed.saturating_sub(2 * pool);
            let most = u64::from(frames).saturating_sub(rest) / 2;
            match arguments.pool {
                Some(pool) if most >= pool_step(pages) => Failure::from(RunError::PoolTooLarge {
                    pool,
                    window,
                    most: most - most % pool_step(pages),
                }),
                _ => RunError::WindowTooSmall {
                    window,
                    least: least_window(pages),
                }
                .into(),
            }
        }
        error => Failure::new(Exit::Usage, error),
    })?;
    check_memory(arguments, pages)?;
    if pages == HostPages::Huge {
        let needed = (arguments.memory.0 + arguments.window.0) / HUGE_PAGE;
        let free = free_huge_pages().unwrap_or(0);
        if needed > free {
            return Err(RunError::HugePages { needed, free }.into());
        }
    }
    Ok(engine)
}

/// Which pages of the host are asked for.
pub(super) fn pages(arguments: &Arguments) -> HostPages {
    match arguments.hugepages {
        true => HostPages::Huge,
        false => HostPages::Standard,
    }
}

/// Checks that RAM, window and pool can be made of whole pages of the host.
fn check_pages(arguments: &Arguments, pages: HostPages) -> Result<(), RunError> {
    if pages == HostPages::Standard {
        return Ok(());
    }
    let sizes = [
        ("--memory", arguments.memory),
        ("--window", arguments.window),
    ];
    for (option, size) in sizes {
        if !size.0.is_multiple_of(pages.bytes()) {
            return Err(RunError::NotHugePages { option, size });
        }
    }
    let step = pool_step(pages);
    match arguments.pool {
        Some(pool) if !u64::from(pool).is_multiple_of(step) => {
            Err(RunError::PoolNotHugePages { pool, step })
        }
        _ => Ok(()),
    }
}

/// The engine's limits for so many frames in both regions.
fn limits(frames: u32, pool: Option<u32>, pages: HostPages) -> EngineConfig {
    let engine = EngineConfig::for_frames(frames);
    match (pool, pages) {
        (Some(pool), _) => engine.with_pool(pool),
        (None, HostPages::Standard) => engine,
        // The vault is whole pages too then, since the window is.
        (None, HostPages::Huge) => {
            let pool = u64::from(engine.pool_frames).next_multiple_of(pool_step(pages));
            // It is at most the window.
            engine.with_pool(pool as u32)
        }
    }
}

/// Sizes of pools are multiples of so many frames.
fn pool_step(pages: HostPages) -> u64 {
    pages.bytes() / u64::from(PAGE_SIZE)
}

/// Smallest window that is enough, in whole MiB.
fn least_window(pages: HostPages) -> Size {
    let mut size = pages.bytes().max(1 << 20);
    let enough = |size: u64| {
        let frames = (size / u64::from(PAGE_SIZE)) as u32;
        limits(frames, None, pages).page_frames().is_ok()
    };
    while !enough(size) {
        size += pages.bytes().max(1 << 20);
    }
    Size(size)
}

/// Checks that RAM and window are no more than this machine has, and than this process may use of it.
fn check_memory(arguments: &Arguments, pages: HostPages) -> Result<(), RunError> {
    let Some(memory) = HostMemory::read(Path::new("/")) else {
        return Ok(());
    };
    // Neither is above 2^44: the sum fits.
    let wanted = Size(arguments.memory.0 + arguments.window.0);
    let available = memory.total;
    if wanted > available {
        return Err(RunError::TooMuchMemory { wanted, available });
    }
    match memory.limit_below(wanted) {
        // Huge pages have limits of their own.
        Some(limit) if pages == HostPages::Standard => Err(RunError::ControlGroup {
            wanted,
            limit: Size(limit.bytes),
            file: limit.file.clone(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_and_vault_are_whole_pages_of_the_window() {
        for (pages, megabytes) in [
            (HostPages::Standard, 1),
            (HostPages::Standard, 256),
            (HostPages::Huge, 6),
            (HostPages::Huge, 256),
            (HostPages::Huge, 4096),
        ] {
            let frames = megabytes << 8;
            let engine = limits(frames, None, pages);
            assert_eq!(engine.pool_frames + engine.vault_frames, frames);
            assert!(u64::from(engine.pool_frames).is_multiple_of(pool_step(pages)));
            assert!(u64::from(engine.vault_frames).is_multiple_of(pool_step(pages)));
            engine.page_frames().unwrap();
        }
    }

    #[test]
    fn the_least_window_is_enough() {
        assert_eq!(least_window(HostPages::Standard), Size(1 << 20));
        assert_eq!(least_window(HostPages::Huge), Size(6 << 20));
    }
}
