//! The engine's limits.

use thiserror::Error;
use vmsrs_protocol::DAMAGED_FRAME;
use vmsrs_protocol::control::{ControlHeader, MESSAGE_BYTES_MAX, SealRequest};
use vmsrs_protocol::seal::SealRecord;

/// Fewest frames that a window has beyond the pool, the evidence and the zero frame.
pub const PAGES_MIN: u32 = 64;

/// Maximum number of records that fit in one seal message.
pub const BATCH_RECORDS_MAX: u32 =
    ((MESSAGE_BYTES_MAX as usize - size_of::<ControlHeader>() - size_of::<SealRequest>())
        / size_of::<SealRecord>()) as u32;

/// The engine's limits, fixed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Frames in the window, the zero frame included.
    pub window_frames: u32,
    /// Maximum number of frames that the driver may hold as granted.
    pub pool_frames: u32,
    /// Maximum number of records in one seal message, at most [`BATCH_RECORDS_MAX`].
    pub batch_records: u32,
    /// Maximum number of frames kept as evidence of incidents.
    pub evidence_frames: u32,
    /// Maximum number of incidents kept of each sort (failed requests, sealed writes); the newest stay.
    pub incidents: usize,
}

impl EngineConfig {
    /// Limits that suit a window of `window_frames` frames.
    ///
    /// An eighth of the window is the pool (at most 64 MiB), a sixty-fourth holds evidence (at most
    /// 4 MiB).
    pub fn for_window(window_frames: u32) -> Self {
        Self {
            window_frames,
            pool_frames: (window_frames / 8).min(0x4000),
            batch_records: 256,
            evidence_frames: (window_frames / 64).min(0x400),
            incidents: 1024,
        }
    }

    /// Frames that hold committed pages when all of them are in use: the window without the zero
    /// frame, the pool and the evidence.
    ///
    /// # Errors
    ///
    /// Fails when the limits do not leave [`PAGES_MIN`] frames or when one of them is invalid.
    pub fn page_frames(&self) -> Result<u32, ConfigError> {
        if self.window_frames >= DAMAGED_FRAME {
            return Err(ConfigError::WindowTooLarge);
        }
        if self.pool_frames == 0 || self.incidents == 0 {
            return Err(ConfigError::Zero);
        }
        if self.batch_records == 0 || self.batch_records > BATCH_RECORDS_MAX {
            return Err(ConfigError::BatchRecords(self.batch_records));
        }
        let needed = u64::from(self.pool_frames) + u64::from(self.evidence_frames) + 1;
        let pages = u64::from(self.window_frames).saturating_sub(needed);
        match u32::try_from(pages) {
            Ok(pages) if pages >= PAGES_MIN => Ok(pages),
            _ => Err(ConfigError::WindowTooSmall {
                frames: self.window_frames,
                needed: needed + u64::from(PAGES_MIN),
            }),
        }
    }
}

/// Limits that are inconsistent.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The pool and the evidence leave no frames for pages.
    #[error("a window of {frames} frames is too small: its pool needs {needed}")]
    WindowTooSmall {
        /// Frames in the window.
        frames: u32,
        /// Fewest frames that would do.
        needed: u64,
    },
    /// Frame numbers have 32 bits, and two of them mean something else.
    #[error("the window has too many frames; make it smaller than 16 TiB")]
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

    #[test]
    fn a_window_must_have_room_beside_its_pool() {
        let config = EngineConfig {
            window_frames: 128,
            pool_frames: 59,
            evidence_frames: 4,
            batch_records: 8,
            incidents: 1,
        };
        assert_eq!(config.page_frames(), Ok(64));
        let config = EngineConfig {
            pool_frames: 60,
            ..config
        };
        assert_eq!(
            config.page_frames(),
            Err(ConfigError::WindowTooSmall {
                frames: 128,
                needed: 129
            })
        );
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let config = EngineConfig::for_window(4096);
        assert!(config.page_frames().is_ok());
        for (config, error) in [
            (
                EngineConfig {
                    window_frames: DAMAGED_FRAME,
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
