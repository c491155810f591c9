//! The control socket: how the `vmsrs` command, or any program of the same user, talks to a running
//! VM.
//!
//! A UNIX stream socket; each request is one line of JSON, and so is each response, in order. See
//! [`Request`] and [`Response`]; `docs/reference-cli.md` shows them.

mod client;
pub(crate) mod domains;
mod facts;
mod process;
mod server;
pub(crate) mod snapshot;
mod socket;

use serde::{Deserialize, Serialize};

pub use self::client::{Client, ClientError};
pub use self::domains::{DomainFacts, DomainList, DomainPosition};
pub use self::facts::{
    AddressFacts, BlockFacts, BlockState, ChangeFacts, CorruptionFacts, Count, DraftFacts,
    EngineStatus, GuestDownFacts, IncidentCount, IncidentDetail, IncidentFacts, IncidentOutcome,
    IncidentSummary, LeftOpenFacts, Place, ProgramFacts, RequestFacts, Restored, SealedWriteFacts,
};
pub use self::process::VmProcess;
pub use self::server::{Reservation, Server, ServerError};
pub use self::socket::{Folder, PathError, default_path, sockets};
use crate::devices::net::NetCounts;
use crate::engine::{Position, ScrubCounts};

/// What can be asked of a VM. In JSON: `{"request":"incident","id":7}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "request",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Request {
    /// The state of the VM.
    Status {},
    /// All incidents that are kept, oldest first.
    Incidents {},
    /// Everything about one incident.
    Incident {
        /// Its number.
        id: u64,
    },
    /// Some domains. The answer says where the next request goes on.
    Domains {
        /// Name of the app, or all apps.
        app: Option<String>,
        /// Where to go on, or the beginning.
        from: Option<DomainPosition>,
    },
    /// Check some sealed pages now. The answer says where the next request goes on.
    Scrub {
        /// Name of the app, or all apps.
        app: Option<String>,
        /// Key of the domain in it, or all its domains. Refused without an app.
        domain: Option<String>,
        /// Where to go on, or the beginning.
        from: Option<Position>,
    },
    /// Press the power button, which asks the guest to turn itself off.
    PowerButton {},
    /// End the VM at once.
    Stop {},
}

/// The answer to a [`Request`]. In JSON: `{"response":"stopping"}`,
/// `{"response":"status","data":{...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", content = "data", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<VmStatus>),
    /// To [`Request::Incidents`].
    Incidents(Vec<IncidentSummary>),
    /// To [`Request::Incident`].
    Incident(Box<IncidentDetail>),
    /// To [`Request::Domains`].
    Domains(DomainList),
    /// To [`Request::Scrub`].
    Scrub(ScrubStep),
    /// To [`Request::PowerButton`]: the guest may react, or not.
    Pressed,
    /// To [`Request::Stop`]: the VM is about to end.
    Stopping,
    /// The request was not carried out.
    Error(Refusal),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people: one sentence.
    pub message: String,
}

/// The reasons why requests are not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Malformed request.
    Malformed,
    /// There is no incident with that number, or it is no longer kept.
    NoSuchIncident,
    /// There is no such app, or no such domain in it.
    NoSuchDomain,
    /// Too many connections at a time.
    Busy,
}

/// A part of the check of sealed pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStep {
    /// What this part has found.
    pub found: ScrubCounts,
    /// Sealed pages that are to be checked in all parts.
    pub pages: u64,
    /// Where the next part starts, if there is one.
    pub next: Option<Position>,
}

/// The state of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// Version of the VMM.
    pub version: String,
    /// The VMM's process on the host.
    pub pid: u32,
    /// Milliseconds since the VM was started.
    pub uptime_ms: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes, without the window.
    pub memory_bytes: u64,
    /// Times that the guest was started again since then.
    pub restarts: u64,
    /// The latest of them.
    pub last_restart: Option<Restart>,
    /// Bytes of the guest's console that could not be written.
    pub console_lost_bytes: u64,
    /// The recovery engine.
    pub recovery: EngineStatus,
    /// The network card, if there is one.
    pub network: Option<NetCounts>,
    /// The daemons that serve disks and shared folders.
    #[serde(default)]
    pub daemons: Vec<DaemonFacts>,
    /// Errors of the guest's drivers with registers and frames, by kind; what they were
    /// refused by the recovery engine is in `recovery`.
    pub device_errors: Vec<Count>,
}

/// A daemon that serves a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonFacts {
    /// The option that asked for it, such as `--disk /var/lib/vm.img`.
    pub option: String,
    /// Its process, if `vmsrs run` has started it.
    pub pid: Option<u32>,
    /// Why it serves no more, if it does not.
    pub lost: Option<String>,
}

/// An end of the guest that was answered with a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How the guest ended, for programs: `reset` or `crash`.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// What the server asks about the VM. Called in the server's thread; must not block for long.
pub trait Operator: Send + Sync {
    /// The state of the VM.
    fn status(&self) -> VmStatus;
    /// All incidents that are kept, oldest first.
    fn incidents(&self) -> Vec<IncidentSummary>;
    /// Everything about the incident `id`, if it is kept.
    fn incident(&self, id: u64) -> Option<IncidentDetail>;
    /// Some domains from a position, or the beginning, on. `None` when there is no such app.
    fn domains(&self, app: Option<&str>, from: Option<DomainPosition>) -> Option<DomainList>;
    /// Checks some sealed pages from a position, or the beginning, on. `None` when there is no such
    /// app or domain.
    fn scrub(
        &self,
        app: Option<&str>,
        domain: Option<&str>,
        from: Option<Position>,
    ) -> Option<ScrubStep>;
    /// Presses the power button; returns at once.
    fn press_power_button(&self);
    /// Ends the VM; returns at once.
    fn stop(&self);
}

/// Handles one request line of a client.
fn answer(operator: &dyn Operator, line: &[u8]) -> Response {
    match serde_json::from_slice(line) {
        Ok(Request::Status {}) => Response::Status(Box::new(operator.status())),
        Ok(Request::Incidents {}) => Response::Incidents(operator.incidents()),
        Ok(Request::Incident { id }) => match operator.incident(id) {
            Some(incident) => Response::Incident(Box::new(incident)),
            None => refuse(
                Reason::NoSuchIncident,
                format!("there is no incident {id}, or it is no longer kept"),
            ),
        },
        Ok(Request::Domains { app, from }) => match operator.domains(app.as_deref(), from) {
            Some(list) => Response::Domains(list),
            None => refuse(Reason::NoSuchDomain, "there is no such app"),
        },
        Ok(Request::Scrub {
            app: None,
            domain: Some(_),
            ..
        }) => refuse(
            Reason::Malformed,
            "malformed request: a domain is one of an app, and none is named",
        ),
        Ok(Request::Scrub { app, domain, from }) => {
            match operator.scrub(app.as_deref(), domain.as_deref(), from) {
                Some(step) => Response::Scrub(step),
                None => refuse(
                    Reason::NoSuchDomain,
                    "there is no such app, or no such domain in it",
                ),
            }
        }
        Ok(Request::PowerButton {}) => {
            operator.press_power_button();
            Response::Pressed
        }
        Ok(Request::Stop {}) => {
            operator.stop();
            Response::Stopping
        }
        Err(error) => refuse(Reason::Malformed, format!("malformed request: {error}")),
    }
}

fn refuse(reason: Reason, message: impl Into<String>) -> Response {
    Response::Error(Refusal {
        reason,
        message: message.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        for (request, json) in [
            (Request::Status {}, r#"{"request":"status"}"#),
            (Request::Incidents {}, r#"{"request":"incidents"}"#),
            (
                Request::Incident { id: 7 },
                r#"{"request":"incident","id":7}"#,
            ),
            (
                Request::Scrub {
                    app: Some("ledger".into()),
                    domain: None,
                    from: None,
                },
                r#"{"request":"scrub","app":"ledger","domain":null,"from":null}"#,
            ),
            (
                Request::Domains {
                    app: None,
                    from: Some(DomainPosition {
                        app: 0,
                        domain: 512,
                    }),
                },
                r#"{"request":"domains","app":null,"from":{"app":0,"domain":512}}"#,
            ),
            (Request::PowerButton {}, r#"{"request":"power-button"}"#),
            (Request::Stop {}, r#"{"request":"stop"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        }
    }

    #[test]
    fn every_reason_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference-cli.md");
        let page = std::fs::read_to_string(page).unwrap();
        for reason in [
            Reason::Malformed,
            Reason::NoSuchIncident,
            Reason::NoSuchDomain,
            Reason::Busy,
        ] {
            let name = serde_json::to_value(reason).unwrap();
            let name = name.as_str().unwrap();
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn responses_have_the_documented_form() {
        let json = serde_json::to_string(&Response::Pressed).unwrap();
        assert_eq!(json, r#"{"response":"pressed"}"#);
        let json = serde_json::to_string(&Response::Stopping).unwrap();
        assert_eq!(json, r#"{"response":"stopping"}"#);
        let json = serde_json::to_string(&refuse(Reason::NoSuchIncident, "no")).unwrap();
        assert_eq!(
            json,
            r#"{"response":"error","data":{"reason":"no-such-incident","message":"no"}}"#
        );
    }
}
