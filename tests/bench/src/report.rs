//! The report of a run, as JSON and as tables.

use serde::Serialize;
use vmsrs_report::table::{Table, numbers, words};

use crate::sample::{Cost, Measured, What};

/// `target/bench/report.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) accelerator: &'static str,
    pub(crate) guest_kernel: String,
    /// Whether a nanosecond is an instruction: budgets only apply to that clock.
    pub(crate) deterministic: bool,
    pub(crate) budgets: Vec<Budget>,
    pub(crate) server: Vec<ServerCost>,
    pub(crate) samples: Vec<Measured>,
}

/// A line of the project's budgets, and what was reached.
#[derive(Debug, Serialize)]
pub(crate) struct Budget {
    name: String,
    value: f64,
    budget: f64,
    unit: &'static str,
}

/// What a command costs a server.
#[derive(Debug, Serialize)]
pub(crate) struct ServerCost {
    server: String,
    /// Percentages of gets and sets, as `95/5`.
    mix: String,
    value_bytes: usize,
    mode: String,
    cpu_ns_per_request: f64,
    exits_per_request: f64,
}

fn mix(writes_percent: u32) -> String {
    format!("{}/{writes_percent}", 100 - writes_percent)
}

/// The rows of servers in `samples`.
fn server_costs(samples: &[Measured]) -> Vec<ServerCost> {
    let costs = samples.iter().filter_map(|one| {
        let load = one.sample.server.as_ref()?;
        Some(ServerCost {
            server: load.server.clone(),
            mix: mix(one.sample.writes_percent.unwrap_or(0)),
            value_bytes: load.value_bytes,
            mode: load.mode.clone(),
            cpu_ns_per_request: one.sample.nanoseconds,
            exits_per_request: one.each(one.cost.all_exits()),
        })
    });
    costs.collect()
}

/// The budgets that `samples` and `server` say something about.
fn budgets(samples: &[Measured], server: &[ServerCost]) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for one in samples {
        if let Some(budget) = one.sample.budget() {
            budgets.push(Budget {
                name: one.name(),
                value: one.sample.nanoseconds,
                budget,
                unit: "instructions",
            });
        }
        if one.sample.protected && one.sample.what == What::Request && one.sample.pages > 0 {
            budgets.push(Budget {
                name: format!("{}: exits per page", one.name()),
                value: one.each(one.cost.all_exits()) / one.sample.pages as f64,
                budget: EXITS_PER_PAGE,
                unit: "exits",
            });
        }
    }
    for (mix, budget) in SERVER_BUDGETS {
        for protected in server
            .iter()
            .filter(|cost| cost.mode == "protected" && cost.mix == mix)
        {
            let plain = server.iter().find(|cost| {
                cost.mode == "plain"
                    && cost.server == protected.server
                    && cost.mix == mix
                    && cost.value_bytes == protected.value_bytes
            });
            if let Some(plain) = plain {
                budgets.push(Budget {
                    name: format!(
                        "{}, {mix}, {} bytes",
                        protected.server, protected.value_bytes
                    ),
                    value: protected.cpu_ns_per_request / plain.cpu_ns_per_request,
                    budget,
                    unit: "times the unprotected server's CPU time",
                });
            }
        }
    }
    budgets
}

/// Most exits for each page that a request writes.
const EXITS_PER_PAGE: f64 = 1.0 / 32.0;

/// Most CPU time of a protected server, as a multiple of the unprotected one's, by its mix of gets and sets.
const SERVER_BUDGETS: [(&str, f64); 2] = [("95/5", 1.03), ("50/50", 1.15)];

/// Subtracts the cost of measuring, which the last empty measurement gives, from all measurements.
fn without_measuring(mut measured: Vec<Measured>) -> Vec<Measured> {
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
    pub(crate) fn name(&self) -> String {
        let percent = self.sample.writes_percent.unwrap_or(0);
        match (self.sample.what, self.sample.pages) {
            (What::Nothing, _) => "nothing".to_owned(),
            (What::Exit, _) => "an exit".to_owned(),
            (What::Request, 0) => "reads".to_owned(),
            (What::Request, pages) => format!("writes, pages: {pages}"),
            (What::Recovery, pages) => format!("error to next request, pages: {pages}"),
            (What::KeyValue, _) => format!("key-value, {percent} % writes"),
            (What::Server, _) => match &self.sample.server {
                Some(load) => format!(
                    "{} {}, {}, {} bytes",
                    load.server,
                    load.mode,
                    mix(percent),
                    load.value_bytes
                ),
                None => "server".to_owned(),
            },
        }
    }

    /// The count for one round.
    fn each(&self, count: u64) -> f64 {
        count as f64 / f64::from(self.sample.rounds)
    }
}

impl Report {
    pub(crate) fn new(
        accelerator: &'static str,
        guest_kernel: String,
        deterministic: bool,
        measured: Vec<Measured>,
    ) -> Self {
        let samples = without_measuring(measured);
        let server = server_costs(&samples);
        // On another clock they say nothing.
        let budgets = match deterministic {
            true => budgets(&samples, &server),
            false => Vec::new(),
        };
        Self {
            accelerator,
            guest_kernel,
            deterministic,
            budgets,
            server,
            samples,
        }
    }

    /// CPU time of servers for a command, in nanoseconds.
    fn servers(&self) -> Table {
        let mut table = Table::markdown(&[
            words("server"),
            words("gets/sets"),
            numbers("bytes"),
            words("mode"),
            numbers("CPU, ns"),
            numbers("exits"),
        ]);
        for cost in &self.server {
            table.row([
                cost.server.clone(),
                cost.mix.clone(),
                cost.value_bytes.to_string(),
                cost.mode.clone(),
                format!("{:.0}", cost.cpu_ns_per_request),
                format!("{:.2}", cost.exits_per_request),
            ]);
        }
        table
    }

    /// Each budget, and what was reached.
    fn budgets(&self) -> Table {
        let mut table = Table::markdown(&[
            words("budget"),
            numbers("reached"),
            numbers("at most"),
            words("unit"),
            words(""),
        ]);
        for one in &self.budgets {
            let digits = if one.budget < 100.0 { 3 } else { 0 };
            table.row([
                one.name.clone(),
                format!("{:.digits$}", one.value),
                format!("{:.digits$}", one.budget),
                one.unit.to_owned(),
                if one.value > one.budget { "missed" } else { "" }.to_owned(),
            ]);
        }
        table
    }

    /// The numbers as tables in Markdown.
    pub(crate) fn tables(&self) -> String {
        [
            self.compared(),
            self.servers(),
            self.where_it_goes(),
            self.kinds_of_exits(),
            self.budgets(),
        ]
        .map(|table| table.to_string())
        .join("\n")
    }

    /// What each round takes with protection and without.
    fn compared(&self) -> Table {
        let mut table = Table::markdown(&[
            words(""),
            numbers("plain, ns"),
            numbers("with, ns"),
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
            if one.sample.what == What::Server
                || (!one.sample.protected && one.sample.what != What::Exit)
            {
                continue;
            }
            let plain = self.samples.iter().find(is_plain);
            let number = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            let with = Some(one).filter(|one| one.sample.protected);
            let exits = |one: &Measured| one.each(one.cost.all_exits());
            table.row([
                one.name(),
                number(plain.map(|plain| plain.sample.nanoseconds), 0),
                number(with.map(|one| one.sample.nanoseconds), 0),
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
            numbers("start"),
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
                    [parts.start, parts.body, parts.end].map(|part| format!("{part:.0}"))
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
    use crate::sample::ServerLoad;
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
    fn the_cost_of_measuring_is_subtracted() {
        let mut nothing = measured(What::Nothing, 0, false, 30);
        nothing.cost.cpu_ns.clear();
        let left = without_measuring(vec![nothing, measured(What::Request, 1, true, 50)]);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].cost.all_exits(), 20);
    }

    #[test]
    fn a_budget_of_a_server_compares_it_with_the_unprotected_one() {
        let of = |mode: &str, nanoseconds| {
            let mut one = measured(What::Server, 0, mode == "protected", 10);
            one.sample.writes_percent = Some(5);
            one.sample.nanoseconds = nanoseconds;
            one.sample.server = Some(ServerLoad {
                server: "cache".to_owned(),
                mode: mode.to_owned(),
                value_bytes: 100,
            });
            one
        };
        let samples = [of("plain", 1000.0), of("protected", 1500.0)];
        let budgets = budgets(&samples, &server_costs(&samples));
        assert_eq!(budgets.len(), 1);
        assert_eq!(budgets[0].name, "cache, 95/5, 100 bytes");
        assert!((budgets[0].value - 1.5).abs() < 1e-9);
    }

    #[test]
    fn plain_and_protected_are_side_by_side() {
        let report = Report::new(
            "nested-tcg",
            String::new(),
            true,
            vec![
                measured(What::Request, 4, false, 10),
                measured(What::Request, 4, true, 25),
            ],
        );
        // The cells without what aligns them.
        let tables = report.tables();
        let tables = tables.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(tables.contains("| writes, pages: 4 | 1234 | 1234 | 1.00 | 2.50 |"));
        assert!(tables.contains("| 1234567 | 1234567 | 1234567 | 500 | 70 | 0 | 0 |"));
        assert!(tables.contains("| exits 2.50 |"));
    }
}
