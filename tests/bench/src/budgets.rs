//! The project's budgets, and what was reached.

use serde::Serialize;
use vmsrs_protocol::shared::RESIDENT_MAX;

use crate::report::ServerCost;
use crate::sample::{Measured, What};

/// A budget.
#[derive(Debug, Serialize)]
pub(crate) struct Budget {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) budget: f64,
    pub(crate) unit: &'static str,
    /// Whether the budget is a lower bound and not an upper one.
    pub(crate) at_least: bool,
    pub(crate) holds: bool,
}

/// Most instructions of a request that reads, more than those of a call.
const READ: f64 = 250.0;
/// Most exits and system calls of a request that reads: none but those of the timer.
const NONE: f64 = 0.01;
/// Pages up to which a request that writes has a budget.
const COLD_PAGES: usize = 64;
/// Most exits for each page that a request writes.
const EXITS_PER_PAGE: f64 = 1.0 / 32.0;
/// Most instructions from an error to the next request.
const RECOVERY: f64 = 12_000.0;
/// Most CPU time of a protected server, as a multiple of the unprotected one's, by its mix of gets and sets.
const SERVERS: [(&str, f64); 2] = [("95/5", 1.03), ("50/50", 1.15)];
/// Most that the 99th percentile of others' requests grows while every tenth request fails.
const OTHERS: f64 = 1.1;
/// Fewest domains of a VM.
const DOMAINS: f64 = 1_000_000.0;
/// Most that a request costs beside the most domains, as a multiple of what it costs beside one: as good as flat.
const FLAT: f64 = 1.02;
/// Most bytes of memory for each page of a domain, in the host and in the driver.
const BYTES_PER_PAGE: f64 = 64.0;
/// Fewest domains that tell something about memory: fewer are lost in what else is allocated and freed meanwhile.
const MEMORY_OF: u32 = 1000;
/// Pages that a domain reserves at least.
const PAGES_OF_A_DOMAIN: f64 = 4.0;

/// Most instructions of a request that writes so many cold pages.
fn cold(pages: usize) -> f64 {
    5000.0 + 2500.0 * pages as f64
}

/// The same for resident pages.
fn resident(pages: usize) -> f64 {
    2500.0 + 1800.0 * pages as f64
}

/// Most CPU time of the host for a request that has written so many pages, those of the heap's lists among them, and fails.
fn host_of_failure(pages: f64) -> f64 {
    30_000.0 + 2000.0 * pages
}

/// The budgets that the measurements say something about.
pub(crate) fn budgets(samples: &[Measured], server: &[ServerCost]) -> Vec<Budget> {
    let mut all = Vec::new();
    let call = samples.iter().find(|one| one.sample.what == What::Call);
    let call = call.map_or(0.0, |one| one.sample.nanoseconds);
    for one in samples.iter().filter(|one| one.sample.protected) {
        of_request(&mut all, one, call);
    }
    of_failures(&mut all, samples);
    of_servers(&mut all, server);
    of_others(&mut all, samples);
    of_domains(&mut all, samples);
    all
}

impl Budget {
    fn at_most(name: impl Into<String>, value: f64, budget: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            budget,
            unit,
            at_least: false,
            holds: value <= budget,
        }
    }
}

/// `call`: what a call of the function alone takes, in the same loop.
fn of_request(all: &mut Vec<Budget>, one: &Measured, call: f64) {
    let (name, pages) = (one.name(), one.sample.pages);
    let took = one.sample.nanoseconds;
    let exits = one.each(one.cost.all_exits());
    match one.sample.what {
        What::Request if pages == 0 => {
            all.push(Budget::at_most(
                format!("{name}: {took:.0}, without the {call:.0} of a call alone"),
                took - call,
                READ,
                "instructions",
            ));
            all.push(Budget::at_most(
                format!("{name}: exits"),
                exits,
                NONE,
                "exits",
            ));
            if let Some(kernel) = &one.sample.kernel {
                let calls = kernel.system_calls;
                let name = format!("{name}: system calls");
                all.push(Budget::at_most(name, calls, NONE, "system calls"));
            }
        }
        What::Request if pages <= COLD_PAGES => {
            all.push(Budget::at_most(&name, took, cold(pages), "instructions"));
        }
        What::Resident if pages <= RESIDENT_MAX => {
            all.push(Budget::at_most(
                &name,
                took,
                resident(pages),
                "instructions",
            ));
        }
        _ => {}
    }
    if matches!(one.sample.what, What::Request | What::Resident) && pages > 0 {
        all.push(Budget::at_most(
            format!("{name}: exits for each page"),
            exits / pages as f64,
            EXITS_PER_PAGE,
            "exits",
        ));
        all.push(Budget::at_most(
            format!("{name}: second-level flushes"),
            one.each(one.cost.second_level_flushes()),
            0.0,
            "flushes",
        ));
    }
}

fn of_failures(all: &mut Vec<Budget>, samples: &[Measured]) {
    let an_exit = samples.iter().find(|one| one.sample.what == What::Exit);
    for one in of(samples, What::Recovery) {
        let took = one.sample.nanoseconds;
        all.push(Budget::at_most(one.name(), took, RECOVERY, "instructions"));
        let Some(an_exit) = an_exit else { continue };
        // Threads of the VM monitor without those that work anyway, and what the vCPU's thread does in KVM: by the cost of
        // an exit, since its CPU time includes the guest.
        let threads = one
            .cost
            .cpu(|name| !name.starts_with("vcpu") && name != "vmsrs-scrubber" && name != "console");
        let exits = one.cost.all_exits() as f64 * an_exit.sample.nanoseconds;
        let dropped = one.sample.dropped.unwrap_or(one.sample.pages as f64);
        all.push(Budget::at_most(
            format!("{}, {dropped:.0} dropped: CPU time of the host", one.name()),
            one.each(threads) + exits / f64::from(one.sample.rounds),
            host_of_failure(dropped),
            "instructions",
        ));
    }
}

fn of_servers(all: &mut Vec<Budget>, server: &[ServerCost]) {
    for (mix, budget) in SERVERS {
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
                let name = format!(
                    "{}, {mix}, {} bytes",
                    protected.server, protected.value_bytes
                );
                all.push(Budget::at_most(
                    name,
                    protected.cpu_ns_per_request / plain.cpu_ns_per_request,
                    budget,
                    "times the unprotected server's CPU time",
                ));
            }
        }
    }
}

fn of_others(all: &mut Vec<Budget>, samples: &[Measured]) {
    let p99 = |what| of(samples, what).find_map(|one| one.sample.p99);
    if let (Some(undisturbed), Some(disturbed)) = (p99(What::Undisturbed), p99(What::Disturbed)) {
        all.push(Budget::at_most(
            "others' 99th percentile while one in ten requests fails",
            disturbed / undisturbed,
            OTHERS,
            "times the undisturbed one",
        ));
    }
}

fn of_domains(all: &mut Vec<Budget>, samples: &[Measured]) {
    let opened = of(samples, What::Opening).filter_map(|one| one.sample.count);
    let Some(most) = opened.max() else { return };
    let most = f64::from(most);
    all.push(Budget {
        at_least: true,
        holds: most >= DOMAINS,
        ..Budget::at_most("domains in a VM", most, DOMAINS, "domains")
    });
    for pages in [0, 1] {
        let mut rows: Vec<&Measured> = of(samples, What::Domains)
            .filter(|one| one.sample.pages == pages)
            .collect();
        rows.sort_by_key(|one| one.sample.count);
        if let [first, .., last] = rows[..] {
            all.push(Budget::at_most(
                last.name(),
                last.sample.nanoseconds / first.sample.nanoseconds,
                FLAT,
                "times the same with one domain",
            ));
        }
    }
    // The larger the number, the less does what is allocated ahead matter.
    let last = of(samples, What::Opening).max_by_key(|one| one.sample.rounds);
    if let Some(one) = last.filter(|one| one.sample.rounds >= MEMORY_OF)
        && let Some(memory) = &one.sample.memory
    {
        let pages = f64::from(one.sample.rounds) * PAGES_OF_A_DOMAIN;
        let host = one.cost.memory_bytes as f64 / pages;
        let driver = memory.driver as f64 / pages;
        for (whose, bytes) in [("host", host), ("driver", driver)] {
            all.push(Budget::at_most(
                format!("memory of the {whose} for each page of a domain"),
                bytes,
                BYTES_PER_PAGE,
                "bytes",
            ));
        }
    }
}

/// The protected rows of a kind.
fn of(samples: &[Measured], what: What) -> impl Iterator<Item = &Measured> {
    samples
        .iter()
        .filter(move |one| one.sample.protected && one.sample.what == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::server_costs;
    use crate::report::tests::measured;
    use crate::sample::ServerLoad;

    fn named<'a>(all: &'a [Budget], name: &str) -> &'a Budget {
        all.iter()
            .find(|one| one.name == name)
            .unwrap_or_else(|| panic!("no {name} in {all:?}"))
    }

    #[test]
    fn a_request_has_budgets_for_time_exits_and_flushes() {
        let mut one = measured(What::Request, 4, true, 10);
        one.cost.exits.insert("remote_tlb_flush_requests".into(), 5);
        let all = budgets(&[one, measured(What::Request, 4, false, 10)], &[]);
        assert_eq!(all.len(), 3);
        assert!((all[0].budget - 15_000.0).abs() < 1e-9 && all[0].holds);
        let exits = named(&all, "writes, cold pages: 4: exits for each page");
        assert!((exits.value - 0.25).abs() < 1e-9 && !exits.holds);
        let flushes = named(&all, "writes, cold pages: 4: second-level flushes");
        assert!((flushes.value - 0.5).abs() < 1e-9 && !flushes.holds);
    }

    #[test]
    fn a_request_that_reads_is_compared_with_a_call() {
        let mut call = measured(What::Call, 0, false, 10);
        (call.sample.nanoseconds, call.sample.kernel) = (50.0, None);
        let mut reads = measured(What::Request, 0, true, 10);
        (reads.sample.nanoseconds, reads.sample.kernel) = (290.0, None);
        let all = budgets(&[call, reads], &[]);
        let read = named(&all, "reads: 290, without the 50 of a call alone");
        assert!((read.value - 240.0).abs() < 1e-9 && read.holds);
    }

    #[test]
    fn a_failure_costs_the_host_threads_and_exits() {
        let mut exit = measured(What::Exit, 0, false, 10);
        exit.sample.nanoseconds = 3000.0;
        let all = budgets(&[exit, measured(What::Recovery, 1, true, 20)], &[]);
        let host = &all[1];
        assert!(host.name.ends_with("CPU time of the host"));
        assert!(
            (host.value - (70.0 + 2.0 * 3000.0)).abs() < 1e-9,
            "{host:?}"
        );
    }

    #[test]
    fn a_server_is_compared_with_the_unprotected_one() {
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
        let all = budgets(&samples, &server_costs(&samples));
        assert_eq!(all.len(), 1);
        assert!((named(&all, "cache, 95/5, 100 bytes").value - 1.5).abs() < 1e-9);
    }

    #[test]
    fn few_domains_miss_a_budget_that_is_a_lower_bound() {
        let mut samples = Vec::new();
        for count in [1, 1000] {
            let mut one = measured(What::Opening, 0, true, 0);
            one.sample.count = Some(count);
            samples.push(one);
            let mut one = measured(What::Domains, 1, true, 0);
            one.sample.count = Some(count);
            samples.push(one);
        }
        let all = budgets(&samples, &[]);
        let domains = named(&all, "domains in a VM");
        assert!(domains.at_least && !domains.holds);
        assert!(named(&all, "writes a page, domains: 1000").holds);
    }
}
