//! The histogram of recovery times, which the VMs count themselves.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::cli::vms::Vm;
use crate::engine::{RECOVERY_BOUNDS, RecoveryTimes};

/// The times of each VM that answers.
#[derive(Debug)]
pub(super) struct RecoveryHistograms(Vec<(String, RecoveryTimes)>);

impl RecoveryHistograms {
    pub(super) fn of(vms: &[Vm]) -> Self {
        let answering = vms.iter().filter_map(|vm| {
            let times = vm.status.as_ref()?.recovery.recovery_times.clone();
            Some((vm.name.clone(), times))
        });
        Self(answering.collect())
    }
}

impl Collector for RecoveryHistograms {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "incident_recovery",
            "Time from the detection of an error until the drafts of its request were dropped",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (vm, times) in &self.0 {
            let bounds = RECOVERY_BOUNDS.iter().map(|&bound| seconds(bound));
            let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(times.counts).collect();
            let count = times.counts.iter().sum();
            family
                .encode_family(&[("vm", vm.as_str())])?
                .encode_histogram::<NoLabelSet>(seconds(times.sum_ns), count, &buckets, None)?;
        }
        Ok(())
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
