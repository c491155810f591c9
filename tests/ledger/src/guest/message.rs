//! What the side on the KVM host tells.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmsrs_report::steps::Count;

/// A message, a line of JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message<P, F> {
    /// The guest with this name is being booted.
    Booting(String),
    /// Its server answers.
    Ready,
    /// How far the work is.
    Progress(P),
    /// The guest has been stopped; this is what was found.
    Done(F),
    /// It went wrong, in words.
    Trouble(String),
}

/// What is found by working with a guest's server.
pub trait Finding: Serialize + DeserializeOwned {
    /// How far the work is.
    type Progress: Serialize + DeserializeOwned;

    /// What is shown of `progress`, `elapsed` after the work began.
    fn count(progress: &Self::Progress, elapsed: Duration) -> Count;

    /// A few words on the result.
    fn summary(&self) -> String;

    /// Whether all promises were kept: otherwise the guest's logs are of interest.
    fn is_good(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        for message in [Message::Progress(5), Message::Done("a\nb".to_owned())] {
            let line = serde_json::to_string(&message).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(
                serde_json::from_str::<Message<_, _>>(&line).unwrap(),
                message
            );
        }
    }
}
