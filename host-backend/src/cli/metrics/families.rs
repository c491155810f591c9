//! The metrics of VMs, as text. Names and units follow the conventions of Prometheus and OpenMetrics 1.0; apps and domains, of
//! which there may be a million, are counted and never labels.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::recovery::RecoveryHistograms;
use crate::cli::vms::Vm;
use crate::control::{Count, VmStatus};

/// A VM by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    vm: String,
}

/// The same with a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    vm: String,
    version: String,
}

/// The same with a kind of events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    vm: String,
    kind: String,
}

/// The same with a kind of incidents, and how they ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IncidentLabels {
    vm: String,
    kind: String,
    outcome: &'static str,
}

/// The same with a state of frames.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    vm: String,
    state: &'static str,
}

/// The same with the direction of network frames, and what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NetworkLabels {
    vm: String,
    direction: &'static str,
    outcome: &'static str,
}

/// A gauge with a fractional value.
type Fraction = Gauge<f64, AtomicU64>;

/// The metrics of these VMs in the text format.
pub(super) fn text(vms: &[Vm]) -> String {
    let mut registry = Registry::with_prefix("vmsrs");
    let families = Families::register(&mut registry);
    for vm in vms {
        families.note(vm);
    }
    registry.register_collector(Box::new(RecoveryHistograms::of(vms)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

/// All families, with no VM in them yet.
struct Families {
    up: Family<Labels, Gauge>,
    info: Family<VersionLabels, Gauge>,
    uptime: Family<Labels, Fraction>,
    memory: Family<Labels, Gauge>,
    restarts: Family<Labels, Counter>,
    resets: Family<Labels, Counter>,
    console_lost: Family<Labels, Counter>,
    incidents: Family<IncidentLabels, Counter>,
    refusals: Family<KindLabels, Counter>,
    device_errors: Family<KindLabels, Counter>,
    frames: Family<StateLabels, Gauge>,
    pool: Family<Labels, Gauge>,
    apps: Family<Labels, Gauge>,
    domains: Family<Labels, Gauge>,
    pages: Family<Labels, Gauge>,
    pages_limit: Family<Labels, Gauge>,
    lost_pages: Family<Labels, Gauge>,
    lost_daemons: Family<Labels, Gauge>,
    batches: Family<Labels, Counter>,
    sealed_pages: Family<Labels, Counter>,
    dropped_drafts: Family<Labels, Counter>,
    scrubbed_pages: Family<Labels, Counter>,
    repaired_pages: Family<Labels, Counter>,
    scrub_passes: Family<Labels, Counter>,
    metadata: Family<Labels, Gauge>,
    network: Family<NetworkLabels, Counter>,
}

impl Families {
    fn register(registry: &mut Registry) -> Self {
        macro_rules! family {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                registry.register($name, $help, Family::clone(&family));
                family
            }};
            ($name:literal, $help:literal, $unit:expr) => {{
                let family = Family::default();
                registry.register_with_unit($name, $help, $unit, Family::clone(&family));
                family
            }};
        }
        Self {
            up: family!("up", "Whether the VM answers at its control socket"),
            info: family!("vm_info", "Version of the monitor that runs the VM"),
            uptime: family!("uptime", "Time since the VM was started", Unit::Seconds),
            memory: family!(
                "memory",
                "RAM of the guest, without pool and vault",
                Unit::Bytes
            ),
            restarts: family!("restarts", "Starts of the guest after it went down"),
            resets: family!("device_resets", "Resets of the running device by the guest"),
            console_lost: family!(
                "console_lost_bytes",
                "Bytes of the console that could not be written"
            ),
            incidents: family!("incidents", "Incidents by kind, and by how they ended"),
            refusals: family!(
                "refusals",
                "What the recovery engine has refused to the driver, by reason"
            ),
            device_errors: family!("device_errors", "Mistakes of the guest's drivers, by kind"),
            frames: family!("frames", "Frames of the vault by state, of 4 KiB each"),
            pool: family!("pool_frames", "Frames of the pool, of 4 KiB each"),
            apps: family!("apps", "Apps that exist"),
            domains: family!("domains", "Domains that exist"),
            pages: family!("pages", "Pages that domains have"),
            pages_limit: family!("pages_limit", "Most pages that domains can have"),
            lost_pages: family!("lost_pages", "Committed pages whose content is lost"),
            lost_daemons: family!(
                "lost_daemons",
                "Daemons of disks and shared folders that serve no more"
            ),
            batches: family!("batches", "Batches of commits that were sealed"),
            sealed_pages: family!("sealed_pages", "Pages sealed"),
            dropped_drafts: family!("dropped_drafts", "Drafts dropped by failed requests"),
            scrubbed_pages: family!("scrubbed_pages", "Sealed pages checked"),
            repaired_pages: family!(
                "repaired_pages",
                "Pages that were repaired by a check, from the mirror"
            ),
            scrub_passes: family!("scrub_passes", "Checks of all sealed pages"),
            metadata: family!(
                "metadata",
                "The host's metadata about frames, pages and domains",
                Unit::Bytes
            ),
            network: family!(
                "network_frames",
                "Network frames by direction, as the guest sees it"
            ),
        }
    }

    fn note(&self, vm: &Vm) {
        let labels = Labels {
            vm: vm.name.clone(),
        };
        let up = self.up.get_or_create(&labels);
        up.set(i64::from(vm.status.is_some()));
        if let Some(status) = &vm.status {
            self.note_status(&labels, status);
        }
    }

    fn note_status(&self, labels: &Labels, status: &VmStatus) {
        let vm = &labels.vm;
        let recovery = &status.recovery;
        let version = VersionLabels {
            vm: vm.clone(),
            version: status.version.clone(),
        };
        self.info.get_or_create(&version).set(1);
        let lost = status.daemons.iter();
        let lost = lost.filter(|daemon| daemon.lost.is_some()).count();
        let uptime = status.uptime_ms as f64 / 1000.0;
        self.uptime.get_or_create(labels).set(uptime);
        for (family, value) in [
            (&self.memory, status.memory_bytes),
            (&self.pool, recovery.pool_frames.into()),
            (&self.apps, recovery.apps.into()),
            (&self.domains, recovery.domains.into()),
            (&self.pages, recovery.pages.into()),
            (&self.pages_limit, recovery.pages_max.into()),
            (&self.lost_pages, recovery.damaged_pages.into()),
            (&self.lost_daemons, lost as u64),
            (&self.metadata, recovery.metadata_bytes),
        ] {
            family.get_or_create(labels).set(value.cast_signed());
        }
        for (family, value) in [
            (&self.restarts, status.restarts),
            (&self.resets, recovery.resets),
            (&self.console_lost, status.console_lost_bytes),
            (&self.batches, recovery.batches),
            (&self.sealed_pages, recovery.sealed_pages),
            (&self.dropped_drafts, recovery.dropped_drafts),
            (&self.scrubbed_pages, recovery.scrub.checked),
            (&self.repaired_pages, recovery.scrub.repaired),
            (&self.scrub_passes, recovery.scrub_passes),
        ] {
            family.get_or_create(labels).inc_by(value);
        }
        for (state, frames) in [
            ("free", recovery.free_frames),
            ("staged", recovery.staged_frames),
            ("sealed", recovery.sealed_frames),
            ("mirror", recovery.mirror_frames),
            ("retired", recovery.retired_frames),
        ] {
            let labels = StateLabels {
                vm: vm.clone(),
                state,
            };
            self.frames.get_or_create(&labels).set(frames.into());
        }
        for kind in &recovery.incidents {
            let labels = IncidentLabels {
                vm: vm.clone(),
                kind: kind.what.clone(),
                outcome: kind.outcome.name(),
            };
            self.incidents.get_or_create(&labels).inc_by(kind.count);
        }
        for (family, counts) in [
            (&self.refusals, &recovery.refusals),
            (&self.device_errors, &status.device_errors),
        ] {
            note_counts(family, vm, counts);
        }
        if let Some(counts) = status.network {
            for (direction, outcome, frames) in [
                ("received", "passed", counts.received),
                ("received", "dropped", counts.received_dropped),
                ("transmitted", "passed", counts.transmitted),
                ("transmitted", "dropped", counts.transmitted_dropped),
            ] {
                let labels = NetworkLabels {
                    vm: vm.clone(),
                    direction,
                    outcome,
                };
                self.network.get_or_create(&labels).inc_by(frames);
            }
        }
    }
}

fn note_counts(family: &Family<KindLabels, Counter>, vm: &str, counts: &[Count]) {
    for Count { what, count } in counts {
        let labels = KindLabels {
            vm: vm.to_owned(),
            kind: what.clone(),
        };
        family.get_or_create(&labels).inc_by(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{DaemonFacts, EngineStatus, IncidentCount, IncidentOutcome};
    use crate::devices::net::NetCounts;
    use crate::engine::RecoveryTimes;

    fn status() -> Box<VmStatus> {
        let count = |what: &str, count| Count {
            what: what.into(),
            count,
        };
        let incidents = |what: &str, count| IncidentCount {
            what: what.into(),
            outcome: IncidentOutcome::Recovered,
            count,
        };
        Box::new(VmStatus {
            name: "web".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 61_500,
            vcpus: 2,
            memory_bytes: 512 << 20,
            restarts: 2,
            last_restart: None,
            console_lost_bytes: 4711,
            recovery: EngineStatus {
                sealed_frames: 12,
                incidents: vec![incidents("double-free", 3), incidents("memory", 5)],
                recovery_times: RecoveryTimes {
                    sum_ns: 1_500_000,
                    counts: [0, 5, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                },
                refusals: vec![count("a \"quoted\"\nreason", 1)],
                ..EngineStatus::default()
            },
            network: Some(NetCounts {
                received: 10,
                received_dropped: 1,
                transmitted: 20,
                transmitted_dropped: 2,
            }),
            daemons: vec![DaemonFacts {
                option: "--disk a.img".into(),
                pid: None,
                lost: Some("it closed the connection".into()),
            }],
            device_errors: Vec::new(),
        })
    }

    /// Names of this program's metrics in a text.
    fn names(text: &str) -> impl Iterator<Item = &str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("vmsrs_"))
    }

    #[test]
    fn alert_rules_dashboard_and_documentation_name_the_metrics_that_there_are() {
        let vm = Vm {
            name: "web".into(),
            path: "vm.sock".into(),
            status: Some(status()),
        };
        let text = text(&[vm]);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut known: Vec<_> = samples.flat_map(names).collect();
        // Without samples there.
        known.push("vmsrs_device_errors_total");
        let file = |path| std::fs::read_to_string(path).unwrap();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let dashboard = file(format!("{root}/packaging/grafana/vmsrs.json"));
        serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
        let rules = file(format!("{root}/packaging/prometheus/vmsrs.rules.yml"));
        for name in names(&rules).chain(names(&dashboard)) {
            assert!(known.contains(&name), "there is no metric {name}");
        }
        let page = file(format!("{root}/docs/reference-cli.md"));
        for name in known {
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not documented"
            );
        }
    }

    #[test]
    fn each_vm_has_its_rows() {
        let vm = |name: &str, status| Vm {
            name: name.into(),
            path: "vm.sock".into(),
            status,
        };
        let text = text(&[vm("web", Some(status())), vm("stuck", None)]);
        for line in [
            "vmsrs_up{vm=\"web\"} 1",
            "vmsrs_up{vm=\"stuck\"} 0",
            "vmsrs_vm_info{vm=\"web\",version=\"0.1.0\"} 1",
            "vmsrs_uptime_seconds{vm=\"web\"} 61.5",
            "vmsrs_memory_bytes{vm=\"web\"} 536870912",
            "vmsrs_restarts_total{vm=\"web\"} 2",
            "vmsrs_lost_daemons{vm=\"web\"} 1",
            "vmsrs_console_lost_bytes_total{vm=\"web\"} 4711",
            "vmsrs_frames{vm=\"web\",state=\"sealed\"} 12",
            r#"vmsrs_incidents_total{vm="web",kind="double-free",outcome="recovered"} 3"#,
            r#"vmsrs_incidents_total{vm="web",kind="memory",outcome="recovered"} 5"#,
            "# UNIT vmsrs_incident_recovery_seconds seconds",
            r#"vmsrs_incident_recovery_seconds_bucket{le="0.00001",vm="web"} 0"#,
            r#"vmsrs_incident_recovery_seconds_bucket{le="0.000025",vm="web"} 5"#,
            r#"vmsrs_incident_recovery_seconds_bucket{le="2.5",vm="web"} 7"#,
            r#"vmsrs_incident_recovery_seconds_bucket{le="+Inf",vm="web"} 8"#,
            r#"vmsrs_incident_recovery_seconds_count{vm="web"} 8"#,
            r#"vmsrs_incident_recovery_seconds_sum{vm="web"} 0.0015"#,
            r#"vmsrs_refusals_total{vm="web",kind="a \"quoted\"\nreason"} 1"#,
            "vmsrs_network_frames_total{vm=\"web\",direction=\"received\",outcome=\"dropped\"} 1",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(!text.contains("vmsrs_memory_bytes{vm=\"stuck\"}"), "{text}");
    }
}
