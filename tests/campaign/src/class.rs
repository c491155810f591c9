//! What became of an error.

use serde::{Deserialize, Serialize};

/// Outcome classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The request was answered right in spite of an error that was stopped or repaired.
    RecoveredRight,
    /// The request was answered, and its own user has a wrong answer or wrong data.
    RecoveredWrongAnswer,
    /// Only the request was lost: answered with an error, everything as before it.
    RequestLost,
    /// The changed code made no difference: answered and state are right.
    NoEffect,
    /// The process or the guest ended, as the kind has it, and every committed state is whole.
    Restarted,
    /// Somebody else was hit, or an earlier commit of the same user.
    OthersHarmed,
    /// The process or the guest ended, and the kind is none of those that may.
    Crash,
    /// No answer.
    Hang,
}

/// What was seen of an error's own request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The answer was an error of the library.
    pub failed: bool,
    /// The answer was the model's.
    pub answer_right: bool,
    /// The user's state was the model's: that before the request if it failed, else that after.
    pub state_right: bool,
    /// The write was refused with an error code.
    pub stopped: bool,
}

/// The class of an error whose request was answered.
#[must_use]
pub fn classify(seen: Seen) -> Class {
    match (seen.failed, seen.state_right, seen.answer_right) {
        (true, true, _) => Class::RequestLost,
        // What earlier requests had committed is not there any more.
        (true, false, _) => Class::OthersHarmed,
        (false, true, true) if seen.stopped => Class::RecoveredRight,
        (false, true, true) => Class::NoEffect,
        (false, ..) => Class::RecoveredWrongAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Seen = Seen {
        failed: true,
        answer_right: false,
        state_right: true,
        stopped: false,
    };

    #[test]
    fn a_request_that_failed_and_left_no_trace_is_lost() {
        assert_eq!(classify(LOST), Class::RequestLost);
    }

    #[test]
    fn a_trace_of_a_failed_request_is_harm() {
        let seen = Seen {
            state_right: false,
            ..LOST
        };
        assert_eq!(classify(seen), Class::OthersHarmed);
    }

    #[test]
    fn a_right_answer_tells_a_stopped_error_from_one_without_effect() {
        let seen = Seen {
            failed: false,
            answer_right: true,
            ..LOST
        };
        assert_eq!(classify(seen), Class::NoEffect);
        let stopped = Seen {
            stopped: true,
            ..seen
        };
        assert_eq!(classify(stopped), Class::RecoveredRight);
    }

    #[test]
    fn a_wrong_answer_or_wrong_data_is_its_own_users_damage() {
        for (answer_right, state_right) in [(true, false), (false, true), (false, false)] {
            let seen = Seen {
                failed: false,
                answer_right,
                state_right,
                stopped: false,
            };
            assert_eq!(classify(seen), Class::RecoveredWrongAnswer);
        }
    }
}
