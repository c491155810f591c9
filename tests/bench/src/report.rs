//! The report of a run, as JSON and as tables.

use serde::Serialize;
use vmsrs_report::table::{Table, numbers, words};

use crate::budgets::{Budget, budgets};
use crate::sample::{Cost, Kernel, Measured, What};

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

/// What a command costs a server.
#[derive(Debug, Serialize)]
pub(crate) struct ServerCost {
    pub(crate) server: String,
    /// Percentages of gets and sets, as `95/5`.
    pub(crate) mix: String,
    pub(crate) value_bytes: usize,
    pub(crate) mode: String,
    pub(crate) cpu_ns_per_request: f64,
    exits_per_request: f64,
}

fn mix(writes_percent: u32) -> String {
    format!("{}/{writes_percent}", 100 - writes_percent)
}

/// The rows of servers in `samples`.
pub(crate) fn server_costs(samples: &[Measured]) -> Vec<ServerCost> {
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

/// Subtracts the cost of measuring, which the last empty measurement of each boot gives, from all measurements.
fn without_measuring(measured: Vec<Measured>) -> Vec<Measured> {
    let mut nothing = Cost::default();
    let mut left = Vec::new();
    for mut one in measured {
        if one.sample.what == What::Nothing {
            nothing = one.cost;
            continue;
        }
        one.cost = one.cost.since(&nothing);
        left.push(one);
    }
    left
}

impl Measured {
    pub(crate) fn name(&self) -> String {
        let sample = &self.sample;
        let percent = sample.writes_percent.unwrap_or(0);
        let count = sample.count.unwrap_or(0);
        let pages = sample.pages;
        match sample.what {
            What::Nothing => "nothing".to_owned(),
            What::Exit => "an exit".to_owned(),
            What::Call => "a call of the function that reads, alone".to_owned(),
            What::Request if pages == 0 => "reads".to_owned(),
            What::Request => format!("writes, cold pages: {pages}"),
            What::Resident => format!("writes, resident pages: {pages}"),
            What::Blocks => {
                let blocks = sample.blocks.unwrap_or(0);
                format!("takes and frees blocks of {count} bytes: {blocks}")
            }
            What::Signal => "a null write and its handled signal, alone".to_owned(),
            What::Recovery => {
                let error = sample.error.as_deref().unwrap_or("error");
                format!("{error} to next request, pages: {pages}")
            }
            What::Undisturbed => "others, nobody fails".to_owned(),
            What::Disturbed => "others, one in ten fails".to_owned(),
            What::KeyValue => format!("key-value, {percent} % writes"),
            What::Server => match &sample.server {
                Some(load) => format!(
                    "{} {}, {}, {} bytes",
                    load.server,
                    load.mode,
                    mix(percent),
                    load.value_bytes
                ),
                None => "server".to_owned(),
            },
            What::Opening => format!("opening a domain, until there are {count}"),
            What::Filling => format!("committing {count} pages of one domain"),
            What::Domains if pages == 0 => format!("reads, domains: {count}"),
            What::Domains => format!("writes a page, domains: {count}"),
            What::InFlight => format!("writes a page, in flight: {count}"),
            What::Step => format!("a step of a suspended request, in flight: {count}"),
            What::Threads => format!("vCPUs: {}, threads: {count}", self.vcpus),
        }
    }

    /// The count for one round.
    pub(crate) fn each(&self, count: u64) -> f64 {
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
    fn servers(&self) -> Option<Table> {
        if self.server.is_empty() {
            return None;
        }
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
        Some(table)
    }

    /// Each budget, and what was reached.
    fn budgets(&self) -> Option<Table> {
        if self.budgets.is_empty() {
            return None;
        }
        let mut table = Table::markdown(&[
            words("budget"),
            numbers("value"),
            numbers("budget"),
            words("unit"),
            words("holds"),
        ]);
        for one in &self.budgets {
            let digits = if one.budget < 100.0 { 3 } else { 0 };
            let bound = if one.at_least { "at least " } else { "" };
            table.row([
                one.name.clone(),
                format!("{:.digits$}", one.value),
                format!("{bound}{:.digits$}", one.budget),
                one.unit.to_owned(),
                if one.holds { "yes" } else { "no" }.to_owned(),
            ]);
        }
        Some(table)
    }

    /// The numbers as tables in Markdown.
    pub(crate) fn tables(&self) -> String {
        let tables = [
            self.compared(),
            self.servers(),
            self.where_it_goes(),
            self.kinds_of_exits(),
            self.memory(),
            self.threads(),
            self.budgets(),
        ];
        let tables = tables.into_iter().flatten();
        let tables: Vec<String> = tables.map(|table| table.to_string()).collect();
        tables.join("\n")
    }

    /// What each round takes with protection and without, and what it makes KVM and the guest's kernel do.
    fn compared(&self) -> Option<Table> {
        let mut table = Table::markdown(&[
            words(""),
            numbers("plain, ns"),
            numbers("with, ns"),
            numbers("plain, exits"),
            numbers("exits"),
            numbers("second-level faults"),
            numbers("second-level flushes"),
            numbers("guest TLB flushes"),
            numbers("IPIs"),
            numbers("system calls"),
        ]);
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let mut rows = 0;
        for one in &self.samples {
            // Only what exists without protection alone has a line of its own.
            let shown = one.sample.protected
                || matches!(one.sample.what, What::Exit | What::Call | What::Signal);
            if !shown || one.sample.what == What::Threads {
                continue;
            }
            let is_plain = |plain: &&Measured| {
                let (plain, sample) = (&plain.sample, &one.sample);
                let same_load = match (&plain.server, &sample.server) {
                    (Some(plain), Some(with)) => {
                        plain.server == with.server && plain.value_bytes == with.value_bytes
                    }
                    (plain, with) => plain.is_none() && with.is_none(),
                };
                !plain.protected
                    && plain.what == sample.what
                    && plain.pages == sample.pages
                    && plain.writes_percent == sample.writes_percent
                    && same_load
            };
            let plain = self.samples.iter().find(is_plain);
            let with = Some(one).filter(|one| one.sample.protected);
            let exits = |one: &Measured| one.each(one.cost.all_exits());
            let host = |count: u64| number(with.map(|one| one.each(count)), 2);
            let kernel = |count: fn(&Kernel) -> f64| {
                let kernel = with.and_then(|one| one.sample.kernel.as_ref());
                number(kernel.map(count), 2)
            };
            rows += 1;
            table.row([
                one.name(),
                number(plain.map(|plain| plain.sample.nanoseconds), 0),
                number(with.map(|one| one.sample.nanoseconds), 0),
                number(plain.map(exits), 2),
                number(with.map(exits), 2),
                host(one.cost.second_level_faults()),
                host(one.cost.second_level_flushes()),
                kernel(Kernel::flushes),
                kernel(|kernel| kernel.ipis),
                kernel(|kernel| kernel.system_calls),
            ]);
        }
        (rows > 0).then_some(table)
    }

    /// What opening domains took of memory.
    fn memory(&self) -> Option<Table> {
        let mut table = Table::markdown(&[
            words("bytes for each domain, with one committed page; for each page of a large one"),
            numbers("host"),
            numbers("driver"),
            numbers("process"),
            numbers("its page tables"),
        ]);
        let mut rows = 0;
        for one in &self.samples {
            let Some(memory) = &one.sample.memory else {
                continue;
            };
            let each = |bytes: i64| format!("{:.0}", bytes as f64 / f64::from(one.sample.rounds));
            rows += 1;
            table.row([
                one.name(),
                each(one.cost.memory_bytes as i64),
                each(memory.driver),
                each(memory.process),
                each(memory.page_tables),
            ]);
        }
        (rows > 0).then_some(table)
    }

    /// What several threads on several vCPUs make the guest's kernel do.
    fn threads(&self) -> Option<Table> {
        let mut table = Table::markdown(&[
            words("flushes here + elsewhere, IPIs"),
            words("for each page's first write"),
            words("for each commit"),
            words("for the seal of all commits"),
            numbers("exits a round"),
            numbers("second-level faults"),
            numbers("second-level flushes"),
        ]);
        let mut rows = 0;
        for one in &self.samples {
            let Some(steps) = &one.sample.steps else {
                continue;
            };
            let step = |kernel: &Kernel| {
                format!(
                    "{:.2} + {:.2}, {:.2}",
                    kernel.local_flushes, kernel.remote_flushes, kernel.ipis
                )
            };
            let host = |count: u64| format!("{:.1}", one.each(count));
            rows += 1;
            table.row([
                one.name(),
                step(&steps.fault),
                step(&steps.commit),
                step(&steps.seal),
                host(one.cost.all_exits()),
                host(one.cost.second_level_faults()),
                host(one.cost.second_level_flushes()),
            ]);
        }
        (rows > 0).then_some(table)
    }

    fn protected(&self) -> impl Iterator<Item = &Measured> {
        self.samples.iter().filter(|one| one.sample.protected)
    }

    /// Nanoseconds of each protected round: by what the request does, and by what has the CPU. The VM monitor's threads
    /// may work for a request after its end.
    fn where_it_goes(&self) -> Option<Table> {
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
        Some(table)
    }

    /// Everything that KVM counts at least once in a hundred protected rounds.
    fn kinds_of_exits(&self) -> Option<Table> {
        let mut table = Table::markdown(&[words(""), words("KVM's counters, for each")]);
        for one in self.protected() {
            let kinds = one.cost.exits.iter();
            let kinds: Vec<String> = kinds
                .filter(|(name, count)| !name.ends_with("_ns") && one.each(**count) >= 0.01)
                .map(|(name, count)| format!("{name} {:.2}", one.each(*count)))
                .collect();
            table.row([one.name(), kinds.join(", ")]);
        }
        Some(table)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sample::tests::sample;

    pub(crate) fn measured(what: What, pages: usize, protected: bool, exits: u64) -> Measured {
        Measured {
            sample: sample(what, pages, protected),
            vcpus: 1,
            cost: Cost {
                exits: [("exits".to_owned(), exits)].into(),
                cpu_ns: [
                    ("vcpu0".to_owned(), 5000),
                    ("recovery-queues".to_owned(), 700),
                ]
                .into(),
                memory_bytes: 0,
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
        assert!(tables.contains("| writes, cold pages: 4 | 1234 | 1234 | 1.00 | 2.50 | 0.00 |"));
        assert!(tables.contains("| 1234567 | 1234567 | 1234567 | 500 | 70 | 0 | 0 |"));
        assert!(tables.contains("| exits 2.50 |"));
    }
}
