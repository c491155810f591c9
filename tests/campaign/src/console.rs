//! The guest's console: how each process of the server ended, and the kernel's complaints.
//!
//! Both are evidence from outside of the server. The supervisor writes exit codes to the kernel's log, whose records
//! reach the console in one piece.

use vmsrs_bed::console::complaint;

/// How the supervisor's record of an end starts.
pub(crate) const SUPERVISOR: &str = "supervisor: process ";
/// How the kernel reports the panic that the campaign triggers.
const ASKED_FOR: &str = "Kernel panic - not syncing: sysrq triggered crash";
/// The start of a boot, and the driver's first message.
const BOOT: &str = "] Linux version ";
const DRIVER: &str = "] vmsrs virtio";
/// Lines of a complaint that are kept, its first one included.
const QUOTED: usize = 40;
/// Lines before an end that are kept.
const BEFORE: usize = 3;
/// Complaints that are kept in words; the others are only counted.
const MOST_QUOTED: usize = 10;

/// The end of a process of the server, as the supervisor saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Boot of the guest.
    pub(crate) boot: String,
    /// Number of the process.
    pub(crate) pid: u32,
    /// Exit code; 128 plus the signal's number when a signal ended it.
    pub(crate) code: i32,
    /// The last lines before it: a message of the library, an assertion, ...
    pub(crate) before: String,
}

/// The contents of a console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Console {
    /// Ends of the server's processes, in order.
    pub(crate) ends: Vec<End>,
    /// Planned panics that the kernel reports.
    pub(crate) panics: u64,
    /// Boots that ended before the driver was loaded.
    pub(crate) boots_cut_short: u64,
    /// Unexpected complaints of the guest's kernel.
    pub(crate) complaints: u64,
    /// The first of them, with the lines that follow.
    pub(crate) quoted: Vec<String>,
}

impl Console {
    /// Parses the console's log; `panics` of the guest were planned.
    pub(crate) fn parse(text: &str, panics: u64) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let mut console = Self {
            boots_cut_short: boots_cut_short(&lines),
            ..Self::default()
        };
        for (number, line) in lines.iter().enumerate() {
            let before = || lines[number.saturating_sub(BEFORE)..number].join(" | ");
            console.ends.extend(end(line, before));
            let Some(head) = complaint_within(line) else {
                continue;
            };
            if head.starts_with(ASKED_FOR) && console.panics < panics {
                console.panics += 1;
                continue;
            }
            console.complaints += 1;
            if console.quoted.len() < MOST_QUOTED {
                let last = lines.len().min(number + QUOTED);
                console.quoted.push(lines[number..last].join("\n"));
            }
        }
        console
    }

    /// How this process ended, if the supervisor has a record of it.
    pub(crate) fn end(&self, boot: &str, pid: u32) -> Option<&End> {
        let is_it = |end: &&End| end.pid == pid && end.boot == boot;
        self.ends.iter().find(is_it)
    }
}

/// Counts boots that never reached the driver and were followed by another boot.
fn boots_cut_short(lines: &[&str]) -> u64 {
    let mut count = 0;
    // The first boot has no predecessor.
    let mut driver = true;
    for line in lines {
        if line.contains(BOOT) {
            count += u64::from(!driver);
            driver = false;
        }
        driver |= line.contains(DRIVER);
    }
    count
}

/// The kernel's complaint in a line, possibly after output of a program.
fn complaint_within(line: &str) -> Option<&str> {
    complaint(line).or_else(|| {
        // A time has a decimal point, `ledger[211]` has none.
        let records = line.match_indices('[').map(|(at, _)| &line[at..]);
        let timed = |record: &&str| {
            record
                .split(']')
                .next()
                .is_some_and(|time| time.contains('.'))
        };
        records.filter(timed).find_map(complaint)
    })
}

/// Parses `supervisor: process 7 of boot 1b2c ended with code 139`.
fn end(line: &str, before: impl FnOnce() -> String) -> Option<End> {
    let (_, text) = line.split_once(SUPERVISOR)?;
    let (pid, text) = text.split_once(" of boot ")?;
    let (boot, code) = text.split_once(" ended with code ")?;
    Some(End {
        boot: boot.to_owned(),
        pid: pid.parse().ok()?,
        code: code.trim_end().parse().ok()?,
        before: before(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str = "[    9.0] Kernel panic - not syncing: sysrq triggered crash\r\n";

    #[test]
    fn ends_are_read_wherever_the_record_begins() {
        let text = "ledger: rea[    3.1] supervisor: process 7 of boot a-b ended with code 139\r\n\
                    [    4.1] supervisor: process 9 of boot a-b ended with code 137\n\
                    [    4.2] supervisor: process x of boot a-b ended with code 137\n";
        let console = Console::parse(text, 0);
        assert_eq!(console.ends.len(), 2);
        assert_eq!(console.end("a-b", 7).unwrap().code, 139);
        let killed = console.end("a-b", 9).unwrap();
        assert_eq!(killed.code, 137);
        assert!(killed.before.contains("code 139"), "{killed:?}");
        assert_eq!(console.end("c", 9), None);
    }

    #[test]
    fn only_unplanned_panics_are_complaints() {
        let twice = PANIC.repeat(2);
        assert_eq!(Console::parse(&twice, 2).complaints, 0);
        assert_eq!(Console::parse(&twice, 1).complaints, 1);
        assert_eq!(Console::parse(PANIC, 0).complaints, 1);
        // A planned panic that the kernel does not report did not happen.
        assert_eq!(Console::parse(&twice, 3).panics, 2);
        assert_eq!(Console::parse(&twice, 1).panics, 1);
        assert_eq!(Console::parse("", 1).panics, 0);
    }

    #[test]
    fn boot_without_driver_before_another_boot_was_cut_short() {
        let boot = "[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian)\n";
        let driver = "[   17.7] vmsrs virtio0: vault of 57344 frames at 0x108000000, pool of 8192 at 0x100000000\n";
        let cut_short = |text: &str| Console::parse(text, 0).boots_cut_short;
        assert_eq!(cut_short(&[boot, driver, boot, driver].concat()), 0);
        assert_eq!(cut_short(&[boot, driver, boot, boot, driver].concat()), 1);
        assert_eq!(cut_short(boot), 0);
    }

    #[test]
    fn kernel_complaint_is_kept_with_what_follows() {
        let text = "Killed[    5.0] BUG: KASAN: use-after-free in vmsrs_commit\n\
                    [    5.1]  dump_stack+0x1\n";
        let console = Console::parse(text, 3);
        assert_eq!(console.complaints, 1);
        assert!(console.quoted[0].contains("dump_stack"), "{console:?}");
    }

    #[test]
    fn kernel_messages_about_programs_are_no_complaints() {
        let text = "[    5.0] vmsrs: incident 10: write to vault frame 344 stopped, address 0x0, instruction 0x0, CPU 1\n\
                    [    6.0] traps: ledger[138] general protection fault ip:41 sp:7f error:0\n\
                    [    7.0] ledger[163]: segfault at 7f ip 7f sp 7f error 6\n";
        assert_eq!(Console::parse(text, 0), Console::default());
    }
}
