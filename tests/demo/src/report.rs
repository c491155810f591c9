//! `report.json`: the results for programs. docs/demo.md lists its fields.

use serde_json::{Value, json};
use vmsrs_ledger::load::outcome::Outcome;

/// The results of the load against the protected server, and where the one without VMSRS died.
#[must_use]
pub fn report(
    accelerator: &str,
    guest_kernel: &str,
    baseline: &Outcome,
    protected: &Outcome,
) -> Value {
    let kinds = protected.kinds.iter().map(|kind| {
        json!({
            "kind": kind.kind,
            "count": kind.count,
            "recovered": kind.recovered,
            "detected_by": kind.detected_by,
            "recovery_ns_p50": kind.recovery_ns_p50,
        })
    });
    json!({
        "accelerator": accelerator,
        "guest_kernel": guest_kernel,
        "users": protected.users,
        "requests": protected.requests,
        "fatal_requests": protected.fatal_requests,
        "recovered": protected.recovered,
        "innocent_requests_failed": protected.ordinary_failed(),
        "innocent_bytes_changed": protected.innocent_bytes_changed,
        "server_restarts": protected.server_restarts,
        "guest_restarts": protected.guest_restarts,
        "kinds": kinds.collect::<Vec<_>>(),
        "baseline": {
            "died_at_request": baseline.died.as_ref().map(|death| death.at_request),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_exactly_the_promised_keys() {
        let outcome = Outcome::default();
        let report = report("nested", "6.1.0", &outcome, &outcome);
        let mut keys: Vec<_> = report.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(
            keys.join(" "),
            "accelerator baseline fatal_requests guest_kernel guest_restarts \
             innocent_bytes_changed innocent_requests_failed kinds recovered requests \
             server_restarts users"
        );
    }
}
