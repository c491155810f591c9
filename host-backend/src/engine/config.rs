//! The engine's limits.

use thiserror::Error;
use vmsrs_protocol::MAX_FRAMES;
use vmsrs_protocol::control::{ControlHeader, MESSAGE_BYTES_MAX, SealRequest};
use vmsrs_protocol::seal::SealRecord;

/// Fewest frames that a vault has for pages.
pub const PAGES_MIN: u32 = 64;

/// Most frames that the pool has if nobody says otherwise: 64 MiB.
const POOL_MAX: u32 = 0x4000;

/// Maximum number of records that fit in one seal message.
pub const BATCH_RECORDS_MAX: u32 =
    ((MESSAGE_BYTES_MAX as usize - size_of::<ControlHeader>() - size_of::<SealRequest>())
        / size_of::<SealRecord>()) as u32;

/// The engine's limits, fixed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Frames in the vault, the zero frame included.
    pub vault_frames: u32,
    /// Frames in the pool.
    pub pool_frames: u32,
    /// Maximum number of records in one seal message, at most [`BATCH_RECORDS_MAX`].
    pub batch_records: u32,
    /// Maximum number of incidents kept of each sort (failed requests, sealed writes); the newest stay.
    pub incidents: usize,
}

impl EngineConfig {
    /// Limits that suit `frames` frames of memory for pool and vault. An eighth of them is the pool (at
    /// most 64 MiB), the vault is the rest.
    pub fn for_frames(frames: u32) -> Self {
        let config = Self {
            vault_frames: frames,
            pool_frames: 0,
            batch_records: 256,
            incidents: 1024,
        };
        config.with_pool((frames / 8).min(POOL_MAX))
    }

    /// These limits with a pool of another size, for the same number of frames in all. A pool that is
    /// larger than that leaves no vault, which [`Self::page_frames`] refuses.
    #[must_use]
    pub fn with_pool(self, pool_frames: u32) -> Self {
        let frames = u64::from(self.vault_frames) + u64::from(self.pool_frames);
        let vault_frames = frames.saturating_sub(pool_frames.into());
        Self {
            vault_frames: u32::try_from(vault_frames).unwrap_or(u32::MAX),
            pool_frames,
            ..self
        }
    }

    /// Frames that hold committed pages and their second copies when all of them are in use: the vault
    /// without the zero frame, and without as many frames as the pool has: so many pages can be on their
    /// way into the vault at a time, while their former versions still stand.
    ///
    /// # Errors
    ///
    /// Fails when the limits do not leave [`PAGES_MIN`] frames or when one of them is invalid.
    pub fn page_frames(&self) -> Result<u32, ConfigError> {
        if self.vault_frames > MAX_FRAMES || self.pool_frames > MAX_FRAMES {
            return Err(ConfigError::WindowTooLarge);
        }
        if self.pool_frames == 0 || self.incidents == 0 {
            return Err(ConfigError::Zero);
        }
        if self.batch_records == 0 || self.batch_records > BATCH_RECORDS_MAX {
            return Err(ConfigError::BatchRecords(self.batch_records));
        }
        let slack = u64::from(self.pool_frames) + 1;
        let pages = u64::from(self.vault_frames).saturating_sub(slack);
        match u32::try_from(pages) {
            Ok(pages) if pages >= PAGES_MIN => Ok(pages),
            _ => Err(ConfigError::WindowTooSmall {
                frames: u64::from(self.vault_frames) + u64::from(self.pool_frames),
                needed: u64::from(self.pool_frames) + slack + u64::from(PAGES_MIN),
            }),
        }
    }
}

/// Limits that are inconsistent.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The pool leaves no frames for pages.
    #[error("{frames} frames for pool and vault are too few: a pool of this size needs {needed}")]
    WindowTooSmall {
        /// Frames in pool and vault.
        frames: u64,
        /// Fewest frames that would do.
        needed: u64,
    },
    /// Frame numbers have 30 bits.
    #[error("pool and vault have too many frames; make each at most 4 TiB")]
    WindowTooLarge,
    /// The pool or the list of incidents has no entry.
    #[error("the pool and the list of incidents need at least one entry")]
    Zero,
    /// The largest seal message would be longer than a message can be, or empty.
    #[error("a seal message can have 1 to {BATCH_RECORDS_MAX} records, not {0}")]
    BatchRecords(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: EngineConfig = EngineConfig {
        vault_frames: 124,
        pool_frames: 59,
        batch_records: 8,
        incidents: 1,
    };

    #[test]
    fn a_vault_must_have_room_beside_its_pool() {
        assert_eq!(CONFIG.page_frames(), Ok(64));
        let config = EngineConfig {
            pool_frames: 60,
            ..CONFIG
        };
        assert_eq!(
            config.page_frames(),
            Err(ConfigError::WindowTooSmall {
                frames: 184,
                needed: 185
            })
        );
    }

    #[test]
    fn pool_and_vault_have_all_frames_together() {
        let config = EngineConfig::for_frames(4096);
        assert_eq!((config.pool_frames, config.vault_frames), (512, 3584));
        let config = config.with_pool(96);
        assert_eq!((config.pool_frames, config.vault_frames), (96, 4000));
        assert!(config.with_pool(u32::MAX).page_frames().is_err());
        let large = EngineConfig::for_frames(1 << 24);
        assert_eq!(large.pool_frames, POOL_MAX);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let config = EngineConfig::for_frames(4096);
        assert!(config.page_frames().is_ok());
        for (config, error) in [
            (
                EngineConfig {
                    vault_frames: MAX_FRAMES + 1,
                    ..config
                },
                ConfigError::WindowTooLarge,
            ),
            (
                EngineConfig {
                    pool_frames: 0,
                    ..config
                },
                ConfigError::Zero,
            ),
            (
                EngineConfig {
                    batch_records: BATCH_RECORDS_MAX + 1,
                    ..config
                },
                ConfigError::BatchRecords(BATCH_RECORDS_MAX + 1),
            ),
        ] {
            assert_eq!(config.page_frames(), Err(error));
        }
    }
}
