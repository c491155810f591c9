//! Percentiles by the nearest-rank method.

/// The smallest value that at least `percent` of all values do not exceed; `None` without values.
///
/// # Panics
///
/// When `percent` is not between 1 and 100.
pub fn percentile(values: &[u64], percent: usize) -> Option<u64> {
    assert!((1..=100).contains(&percent), "percent is between 1 and 100");
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&values, 50), Some(50));
        assert_eq!(percentile(&values, 99), Some(99));
        assert_eq!(percentile(&values, 100), Some(100));
        assert_eq!(percentile(&[5, 1, 9], 50), Some(5));
        assert_eq!(percentile(&[4], 1), Some(4));
    }

    #[test]
    fn no_values_have_no_percentile() {
        assert_eq!(percentile(&[], 50), None);
    }
}
