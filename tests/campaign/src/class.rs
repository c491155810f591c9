//! The outcome of an error.

use serde::{Deserialize, Serialize};

/// Outcome classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The answer was right, and the error was stopped or repaired.
    RecoveredRight,
    /// The request was answered, but its own user has a wrong answer or wrong data.
    RecoveredWrongAnswer,
    /// Only the request was lost: it was answered with an error, and nothing changed.
    RequestLost,
    /// The error made no difference: answer and state are right.
    NoEffect,
    /// The process or the guest ended as expected of the kind, and every committed state is intact.
    Restarted,
    /// Another user was affected, or an earlier commit of the same user.
    OthersHarmed,
    /// The process or the guest ended, which the kind must not cause.
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
        // Data of earlier commits is gone.
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
    fn failed_request_without_trace_is_lost() {
        assert_eq!(classify(LOST), Class::RequestLost);
    }

    #[test]
    fn trace_of_a_failed_request_is_harm() {
        let seen = Seen {
            state_right: false,
            ..LOST
        };
        assert_eq!(classify(seen), Class::OthersHarmed);
    }

    #[test]
    fn stopped_error_differs_from_one_without_effect() {
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
    fn wrong_answer_or_data_is_damage_of_its_user() {
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
