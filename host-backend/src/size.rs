//! Sizes on the command line and in reports.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// A size in bytes, written with a unit: `512M`, `4G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text that is not a size.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a size: give a number with one of the units K, M, G, T, for example 512M")]
pub struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let upper = text.to_ascii_uppercase();
            // `M`, `MB` and `MiB` all mean the same, and so it is with the others.
            let short = upper.strip_suffix("IB").or(upper.strip_suffix('B'));
            let short = short.unwrap_or(&upper);
            let shift = UNITS.iter().find(|&&(unit, _)| short.ends_with(unit));
            let (digits, shift) = match shift {
                Some(&(_, shift)) => (&short[..short.len() - 1], shift),
                // A bare number is a mistake more often than a number of bytes, but 0 is 0.
                None if short == "0" => (short, 0),
                None => return None,
            };
            if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            digits.parse::<u64>().ok()?.checked_mul(1 << shift)
        };
        parse().map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl fmt::Display for Size {
    /// With the largest unit that leaves at least 1, and one decimal where it is needed. With `{:#}` in the
    /// largest unit that needs none, so that the command line takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let mut units = UNITS.iter().rev();
            return match units.find(|&&(_, shift)| self.0.is_multiple_of(1 << shift)) {
                Some(&(unit, shift)) if self.0 != 0 => write!(f, "{}{unit}", self.0 >> shift),
                _ => write!(f, "{}", self.0),
            };
        }
        let unit = UNITS.iter().rev().find(|&&(_, shift)| self.0 >> shift != 0);
        let text = match unit {
            None => self.0.to_string(),
            Some(&(unit, shift)) if self.0.is_multiple_of(1 << shift) => {
                format!("{}{unit}", self.0 >> shift)
            }
            Some(&(unit, shift)) => {
                format!("{:.1}{unit}", self.0 as f64 / (1u64 << shift) as f64)
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("4g", 4 << 30),
            ("1KiB", 1024),
            ("2TB", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn exact_sizes_are_taken_back() {
        for (bytes, text) in [
            (0, "0"),
            (4096, "4K"),
            (1536, "1536"),
            (68 << 20, "68M"),
            ((1 << 30) + (64 << 20), "1088M"),
            (1 << 40, "1T"),
            (u64::MAX << 10, "18014398509481983K"),
        ] {
            assert_eq!(format!("{:#}", Size(bytes)), text);
            // Sizes below a kilobyte have no unit.
            if bytes.is_multiple_of(1024) {
                assert_eq!(text.parse(), Ok(Size(bytes)));
            }
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "512",
            "-1M",
            "+1M",
            "1.5G",
            "x",
            "1MM",
            "99999999999T",
            "é",
            "B",
        ] {
            assert_eq!(text.parse::<Size>(), Err(SizeError(text.into())));
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (4096, "4K"),
            (1536, "1.5K"),
            (256 << 20, "256M"),
            (3 << 40, "3T"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
