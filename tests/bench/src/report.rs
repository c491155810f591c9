//! What is kept of a run, and its tables.

use serde::Serialize;
use vmsrs_report::table::{Table, numbers, words};

use crate::sample::{Cost, Measured, What};

/// `target/bench/report.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) accelerator: &'static str,
    pub(crate) guest_kernel: String,
    /// Whether a nanosecond is an instruction: budgets are meant for that clock alone.
    pub(crate) deterministic: bool,
    pub(crate) samples: Vec<Measured>,
}

/// Takes what measuring itself costs from the costs of all measurements: the last that measured nothing.
pub(crate) fn without_measuring(mut measured: Vec<Measured>) -> Vec<Measured> {
    let nothing = measured
        .iter()
        .rfind(|one| one.sample.what == What::Nothing)
        .map_or_else(Cost::default, |one| one.cost.clone());
    measured.retain(|one| one.sample.what != What::Nothing);
    for one in &mut measured {
        one.cost = one.cost.since(&nothing);
    }
    measured
}

impl Measured {
    fn name(&self) -> String {
        let percent = self.sample.writes_percent.unwrap_or(0);
        match (self.sample.what, self.sample.pages) {
            (What::Nothing, _) => "nothing".to_owned(),
            (What::Exit, _) => "an exit".to_owned(),
            (What::Request, 0) => "reads".to_owned(),
            (What::Request, pages) => format!("writes, pages: {pages}"),
            (What::Recovery, pages) => format!("error to next request, pages: {pages}"),
            (What::KeyValue, _) => format!("key-value, {percent} % writes"),
        }
    }

    /// A round's share of a count over all rounds.
    fn each(&self, count: u64) -> f64 {
        count as f64 / f64::from(self.sample.rounds)
    }
}

impl Report {
    /// The numbers as tables in Markdown.
    pub(crate) fn tables(&self) -> String {
        [self.compared(), self.where_it_goes(), self.kinds_of_exits()]
            .map(|table| table.to_string())
            .join("\n")
    }

    /// What each round takes with protection and without.
    fn compared(&self) -> Table {
        let mut table = Table::markdown(&[
            words(""),
            numbers("plain, ns"),
            numbers("with, ns"),
            numbers("budget, ns"),
            numbers("plain, exits"),
            numbers("with, exits"),
        ]);
        for one in &self.samples {
            let is_plain = |plain: &&Measured| {
                let (plain, sample) = (&plain.sample, &one.sample);
                !plain.protected
                    && plain.what == sample.what
                    && plain.pages == sample.pages
                    && plain.writes_percent == sample.writes_percent
            };
            // Only what exists without protection alone has a line of its own.
            if !one.sample.protected && one.sample.what != What::Exit {
                continue;
            }
            let plain = self.samples.iter().find(is_plain);
            let number = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            let with = Some(one).filter(|one| one.sample.protected);
            // Budgets are in instructions: on another clock they say nothing.
            let budget = one.sample.budget().filter(|_| self.deterministic);
            let exits = |one: &Measured| one.each(one.cost.all_exits());
            table.row([
                one.name(),
                number(plain.map(|plain| plain.sample.nanoseconds), 0),
                number(with.map(|one| one.sample.nanoseconds), 0),
                number(budget, 0),
                number(plain.map(exits), 2),
                number(with.map(exits), 2),
            ]);
        }
        table
    }

    fn protected(&self) -> impl Iterator<Item = &Measured> {
        self.samples.iter().filter(|one| one.sample.protected)
    }

    /// Nanoseconds of each protected round: by what the request does, and by what has the CPU. The VM monitor's threads
    /// may work for a request after its end.
    fn where_it_goes(&self) -> Table {
        let mut table = Table::markdown(&[
            words("where it goes, ns"),
            numbers("begin"),
            numbers("function, page faults"),
            numbers("end, commit"),
            numbers("vCPU"),
            numbers("sealing"),
            numbers("cleansing"),
            numbers("others"),
        ]);
        for one in self.protected() {
            let parts = match one.sample.parts {
                Some(parts) => {
                    [parts.begin, parts.body, parts.end].map(|part| format!("{part:.0}"))
                }
                None => ["-", "-", "-"].map(str::to_owned),
            };
            let is_vcpu = |name: &str| name.starts_with("vcpu");
            let seals = |name: &str| name.ends_with("-queues");
            let wipes = |name: &str| name == "vmsrs-cleanser";
            let others = |name: &str| !is_vcpu(name) && !seals(name) && !wipes(name);
            let threads = [
                one.cost.cpu(is_vcpu),
                one.cost.cpu(seals),
                one.cost.cpu(wipes),
                one.cost.cpu(others),
            ];
            let threads = threads.map(|time| format!("{:.0}", one.each(time)));
            table.row([one.name()].into_iter().chain(parts).chain(threads));
        }
        table
    }

    /// Everything that KVM counts at least once in a hundred protected rounds.
    fn kinds_of_exits(&self) -> Table {
        let mut table = Table::markdown(&[words(""), words("KVM's counters, for each")]);
        for one in self.protected() {
            let kinds = one.cost.exits.iter();
            let kinds: Vec<String> = kinds
                .filter(|(name, count)| !name.ends_with("_ns") && one.each(**count) >= 0.01)
                .map(|(name, count)| format!("{name} {:.2}", one.each(*count)))
                .collect();
            table.row([one.name(), kinds.join(", ")]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::tests::sample;

    fn measured(what: What, pages: usize, protected: bool, exits: u64) -> Measured {
        Measured {
            sample: sample(what, pages, protected),
            cost: Cost {
                exits: [("exits".to_owned(), exits)].into(),
                cpu_ns: [
                    ("vcpu0".to_owned(), 5000),
                    ("recovery-queues".to_owned(), 700),
                ]
                .into(),
            },
        }
    }

    #[test]
    fn cost_of_measuring_is_subtracted() {
        let mut nothing = measured(What::Nothing, 0, false, 30);
        nothing.cost.cpu_ns.clear();
        let left = without_measuring(vec![nothing, measured(What::Request, 1, true, 50)]);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].cost.all_exits(), 20);
    }

    #[test]
    fn plain_and_protected_are_side_by_side() {
        let report = Report {
            accelerator: "nested-tcg",
            guest_kernel: String::new(),
            deterministic: true,
            samples: vec![
                measured(What::Request, 4, false, 10),
                measured(What::Request, 4, true, 25),
            ],
        };
        // The cells without what aligns them.
        let tables = report.tables();
        let tables = tables.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(tables.contains("| writes, pages: 4 | 1234 | 1234 | 17500 | 1.00 | 2.50 |"));
        assert!(tables.contains("| 1234567 | 1234567 | 1234567 | 500 | 70 | 0 | 0 |"));
        assert!(tables.contains("| exits 2.50 |"));
    }
}
