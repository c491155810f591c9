//! Distributions of values: a histogram that can be stored as JSON.

use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Significant digits of values. Below 256 they are exact.
const DIGITS: u8 = 2;

/// A histogram with a precision of 1 %, in bounded memory; serialised as pairs of a value and its count.
#[derive(Clone, PartialEq)]
pub struct Distribution(Histogram<u64>);

impl Default for Distribution {
    fn default() -> Self {
        Self(Histogram::new(DIGITS).expect("two digits are in the crate's range"))
    }
}

impl Distribution {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_many(value, 1);
    }

    /// Adds all values of another one.
    pub fn add(&mut self, other: &Self) {
        for (value, count) in other.pairs() {
            self.record_many(value, count);
        }
    }

    fn record_many(&mut self, value: u64, count: u64) {
        // It grows as it has to, so no value is out of range.
        let _ = self.0.record_n(value, count);
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The smallest value that at least `percent` of all do not exceed; `None` without values. 100 gives the largest.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<u64> {
        let count = self.count();
        let rank = (count * u64::from(percent)).div_ceil(100).max(1);
        // Half a rank below, or the quantile may round up to the next one.
        let quantile = (rank as f64 - 0.5) / count as f64;
        (count > 0).then(|| self.0.value_at_quantile(quantile))
    }

    /// The median.
    #[must_use]
    pub fn median(&self) -> Option<u64> {
        self.percentile(50)
    }

    /// The smallest value.
    #[must_use]
    pub fn min(&self) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.min())
    }

    fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_at_value()))
    }
}

impl Extend<u64> for Distribution {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.record(value));
    }
}

impl FromIterator<u64> for Distribution {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Self {
        let mut distribution = Self::default();
        distribution.extend(values);
        distribution
    }
}

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.pairs()).finish()
    }
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.pairs())
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut distribution = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            distribution.record_many(value, count);
        }
        Ok(distribution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_values_are_exact() {
        let values: Distribution = (1..=100).rev().collect();
        assert_eq!((values.min(), values.median()), (Some(1), Some(50)));
        assert_eq!(values.percentile(99), Some(99));
        assert_eq!(values.percentile(100), Some(100));
    }

    #[test]
    fn no_values_have_no_percentile() {
        assert_eq!(Distribution::default().median(), None);
        assert_eq!(Distribution::default().min(), None);
    }

    #[test]
    fn values_of_both_are_added() {
        let mut both: Distribution = [5, 8].into_iter().collect();
        both.add(&[5].into_iter().collect());
        assert_eq!(format!("{both:?}"), "{5: 2, 8: 1}");
        assert_eq!(both.count(), 3);
    }

    #[test]
    fn any_value_is_counted() {
        let values: Distribution = [0, u64::MAX].into_iter().collect();
        assert_eq!(values.count(), 2);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_a_hundredth(
            values in prop::collection::vec(1u64..10_000_000_000, 1..300),
            percent in 1u8..=100,
        ) {
            let distribution: Distribution = values.iter().copied().collect();
            let found = distribution.percentile(percent).unwrap();
            let mut sorted = values;
            sorted.sort_unstable();
            let exact = sorted[(sorted.len() * usize::from(percent)).div_ceil(100) - 1];
            prop_assert!(found.abs_diff(exact) <= exact / 100 + 1, "{found} for {exact}");
        }

        #[test]
        fn json_keeps_all_values(values: Vec<u64>) {
            let distribution: Distribution = values.into_iter().collect();
            let text = serde_json::to_string(&distribution).unwrap();
            prop_assert_eq!(serde_json::from_str::<Distribution>(&text).unwrap(), distribution);
        }
    }
}
