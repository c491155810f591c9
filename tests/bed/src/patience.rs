//! How long to wait before something counts as hung.
//!
//! No limit decides whether a test passes: tests wait for events, and a limit only ends a run in which the event does not
//! come. Limits are at least ten times what an idle machine takes; [`VARIABLE`] multiplies all of them.

use std::env;
use std::time::Duration;

/// The environment variable with the factor, 1 by default. Jobs on the KVM host inherit it.
pub const VARIABLE: &str = "VMSRS_PATIENCE";

/// `limit` times the factor.
pub fn scaled(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

/// The factor.
pub fn factor() -> u32 {
    parse(&env::var(VARIABLE).unwrap_or_default())
}

/// The factor in `text`; 1 for anything other than a positive number.
fn parse(text: &str) -> u32 {
    text.trim().parse().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_at_least_one() {
        assert_eq!(parse("6"), 6);
        for text in ["", "0", "-3", "long"] {
            assert_eq!(parse(text), 1, "{text:?}");
        }
    }
}
