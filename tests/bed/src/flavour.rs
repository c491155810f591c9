//! The kernel that test guests run.

use std::env;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::kernel::Series;

/// A kernel to boot as a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Debian's own build of a series.
    Stock(Series),
    /// Built from Debian's source with the kernel's own checkers: KASAN, lockdep and others.
    Debug,
}

impl Flavour {
    /// The environment variable that chooses: `6.1` (the default), `6.12`, `7` or `debug`.
    pub const VARIABLE: &str = "VMSRS_KERNEL";

    /// The kernel of a guest when [`Flavour::VARIABLE`] is not set.
    pub const DEFAULT: Self = Self::Stock(Series::V6_1);

    /// The series whose source the debug kernel is built from.
    pub(crate) const DEBUG_SERIES: Series = Series::V6_1;

    /// What [`Flavour::VARIABLE`] asks for.
    ///
    /// # Errors
    ///
    /// [`Error::BadFlavour`] for an unknown name.
    pub fn chosen() -> Result<Self> {
        match env::var(Self::VARIABLE) {
            Ok(name) if !name.is_empty() => {
                name.parse().map_err(|_| Error::BadFlavour { value: name })
            }
            _ => Ok(Self::DEFAULT),
        }
    }

    /// How many times as long as on a stock kernel the same work may take: instrumentation is slow.
    pub fn slowness(self) -> u32 {
        match self {
            Self::Stock(_) => 1,
            Self::Debug => 6,
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stock(series) => series.fmt(f),
            Self::Debug => f.write_str("debug"),
        }
    }
}

impl FromStr for Flavour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "debug" => Ok(Self::Debug),
            _ => text
                .parse()
                .map(Self::Stock)
                .map_err(|_| format!("no such kernel: {text}; there are 6.1, 6.12, 7 and debug")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_are_read_as_they_are_written() {
        for flavour in [
            Flavour::Debug,
            Flavour::Stock(Series::V6_1),
            Flavour::Stock(Series::V6_12),
            Flavour::Stock(Series::V7),
        ] {
            assert_eq!(flavour.to_string().parse(), Ok(flavour));
        }
        assert!("7.0".parse::<Flavour>().is_err());
    }
}
