//! One measurement.

use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// A request that ends well; without protection the same work alone.
    Request,
    /// From an error until the same thread is in its next request.
    Recovery,
}

/// A mean over many rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) what: What,
    /// Pages that the request writes; 0 for one that only reads.
    pub(crate) pages: usize,
    pub(crate) protected: bool,
    pub(crate) rounds: u32,
    /// Of the guest's clock, for one round.
    pub(crate) nanoseconds: f64,
}

impl Sample {
    /// The most that it may be by the project's budget, in nanoseconds of a CPU that executes one instruction in each.
    pub(crate) fn budget(&self) -> Option<f64> {
        match self.what {
            _ if !self.protected => None,
            What::Request if self.pages == 0 => Some(100.0),
            What::Request => Some(1500.0 + 4000.0 * self.pages as f64),
            What::Recovery => Some(15_000.0),
        }
    }

    /// Begins the line of the guest's console that has a sample.
    const MARK: &str = "@sample ";

    /// The line that carries it over the guest's console.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        Ok(format!("{}{}", Self::MARK, serde_json::to_string(self)?))
    }

    /// The sample in a line of the console; `None` for all other lines.
    pub(crate) fn in_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim().strip_prefix(Self::MARK)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_survives_the_console() {
        let sample = Sample {
            what: What::Recovery,
            pages: 4,
            protected: true,
            rounds: 10,
            nanoseconds: 1234.5,
        };
        let line = format!("{}\r", sample.line().unwrap());
        assert_eq!(Sample::in_line(&line), Some(sample));
        assert_eq!(Sample::in_line("[    1.0] @sample {}"), None);
    }

    #[test]
    fn budgets_are_of_protected_requests() {
        let mut sample = Sample {
            what: What::Request,
            pages: 4,
            protected: true,
            rounds: 1,
            nanoseconds: 0.0,
        };
        assert_eq!(sample.budget(), Some(17_500.0));
        sample.pages = 0;
        assert_eq!(sample.budget(), Some(100.0));
        sample.protected = false;
        assert_eq!(sample.budget(), None);
    }
}
