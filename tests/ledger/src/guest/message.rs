//! Messages from the KVM host.

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
    /// Progress of the work.
    Progress(P),
    /// The guest has been stopped, with this result.
    Done(F),
    /// It failed, in words.
    Trouble(String),
}

/// The result of working with a guest's server.
pub trait Finding: Serialize + DeserializeOwned {
    /// Progress of the work.
    type Progress: Serialize + DeserializeOwned;

    /// How `progress` is shown, `elapsed` after the start of the work.
    fn count(progress: &Self::Progress, elapsed: Duration) -> Count;

    /// The result in a few words.
    fn summary(&self) -> String;

    /// Whether all promises were kept. If not, the guest's logs are printed.
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
