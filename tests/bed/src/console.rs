//! What a Linux kernel prints on its console when it detects a bug in itself.

/// How the first line of a report starts, after the time stamp: from an oops, a checker of a debug kernel (KASAN, lockdep,
/// debug objects, ...) or a watchdog.
const PREFIXES: &[&str] = &[
    // Oopses, KASAN, sleeping while atomic, soft lockups, bad pages, "scheduling while atomic".
    "BUG: ",
    "kernel BUG at ",
    "Oops",
    "general protection fault",
    "double fault",
    "Internal error",
    "stack segment",
    "invalid opcode",
    "divide error",
    "Kernel panic",
    // WARN_ON; the headings of lockdep ("WARNING: possible circular locking dependency detected") and RCU.
    "WARNING: ",
    "DEBUG_LOCKS_WARN_ON",
    "INFO: task ",
    "INFO: possible ",
    "INFO: trying to register ",
    "INFO: rcu_",
    "rcu: INFO: ",
    "watchdog: BUG",
    "UBSAN: ",
    "ODEBUG: ",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
    "Bad rss-counter state",
];

/// The line without its time stamp, if `line` of a kernel's console is the first line of a bug report.
///
/// Neither the further lines of a report nor what user programs print match.
///
/// ```
/// use vmsrs_bed::console::complaint;
///
/// let line = "[    7.125204] BUG: KASAN: use-after-free in vmsrs_commit+0x12/0x80 [vmsrs]";
/// assert_eq!(complaint(line), Some(&line[15..]));
/// assert_eq!(complaint("[    7.1] vmsrs: loaded"), None);
/// ```
pub fn complaint(line: &str) -> Option<&str> {
    let text = without_time(line.trim_end());
    let known = PREFIXES.iter().any(|prefix| text.starts_with(prefix));
    (known || is_of_slab(text)).then_some(text)
}

/// Whether this is the first line of a report of the slab allocator, which names the cache: `BUG kmalloc-64 (Tainted: G ...): ...`.
fn is_of_slab(text: &str) -> bool {
    let cache = text
        .strip_prefix("BUG ")
        .and_then(|rest| rest.split_once(" ("));
    cache.is_some_and(|(cache, _)| !cache.is_empty() && !cache.contains(char::is_whitespace))
}

/// The line without `[   12.345678] ` and, if present, `[  T123] `.
fn without_time(line: &str) -> &str {
    let mut text = line.trim_start();
    while let Some((stamp, rest)) = text
        .strip_prefix('[')
        .and_then(|inner| inner.split_once(']'))
    {
        let is_stamp = stamp
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, ' ' | '.' | 'T' | 'C'));
        if !is_stamp {
            break;
        }
        text = rest.trim_start();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_of_reports_are_found() {
        for head in [
            "BUG: KASAN: slab-out-of-bounds in page_copy+0x3/0x9 [vmsrs]",
            "BUG: sleeping function called from invalid context at mm/slab.h:274",
            "WARNING: possible circular locking dependency detected",
            "WARNING: CPU: 1 PID: 77 at mm/memory.c:1 insert_pfn+0x1/0x2",
            "general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP",
            "INFO: task kworker/0:1:12 blocked for more than 122 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "list_del corruption. prev->next should be ffff, but was 0",
            "BUG kmalloc-64 (Not tainted): Right Redzone overwritten",
            "BUG vmsrs_draft (Tainted: G           O     ): Poison overwritten",
        ] {
            assert_eq!(complaint(&format!("[    1.000000] {head}\r")), Some(head));
            assert_eq!(
                complaint(&format!("[    1.000000][   T12] {head}")),
                Some(head)
            );
            assert_eq!(complaint(head), Some(head));
        }
    }

    #[test]
    fn ordinary_lines_are_not() {
        for line in [
            "",
            "[    0.000000] Linux version 6.1.192-debug",
            "[    0.5] kprobes: kprobe jump-optimization is enabled",
            "[    0.5] page_table_check: disabled",
            "[    3.1] vmsrs: request 5 failed",
            "thread 'main' panicked: BUG: of a program",
            "[    1.0]  ? __warn+0x81/0x100",
            "[not a stamp] BUG: x",
            "[    3.1] BUG reports go to the list (see MAINTAINERS)",
        ] {
            assert_eq!(complaint(line), None, "{line}");
        }
    }
}
