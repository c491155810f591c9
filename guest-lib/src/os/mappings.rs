//! Mappings of the process that may be stacks.

use super::modules::each_line;

/// Bytes at whose multiples arenas of the C library's heap begin.
const ARENA: u64 = 64 << 20;

/// Whether both addresses lie in one mapping that a stack may have for itself: not in a file's, and not in the heap of the C
/// library, where nothing says what lies below a stack.
pub(crate) fn is_stack(low: u64, pointer: u64) -> bool {
    let mut is = false;
    // Without `/proc` nothing is known.
    let _ = each_line(|line| is |= is_stack_of(line, low, pointer));
    is
}

/// The same for one mapping, a line of `/proc/self/maps`: see `proc_pid_maps(5)`.
fn is_stack_of(line: &[u8], low: u64, pointer: u64) -> bool {
    let Some((start, end, access, path)) = mapping(line) else {
        return false;
    };
    let is_private = access.starts_with(b"rw") && access.get(3) == Some(&b'p');
    let is_anonymous = path.is_empty() || path.starts_with(b"[anon") || path == b"[stack]";
    let has_arena = start <= pointer / ARENA * ARENA;
    start <= low && pointer < end && is_private && is_anonymous && !has_arena
}

/// First address, the first one after it, access and path.
fn mapping(line: &[u8]) -> Option<(u64, u64, &[u8], &[u8])> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let (start, end) = std::str::from_utf8(fields.next()?).ok()?.split_once('-')?;
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).ok());
    let access = fields.next()?;
    let path = fields.nth(3).unwrap_or_default().trim_ascii();
    Some((start?, end?, access, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_anonymous_memory_that_is_no_heap_may_be_a_stack() {
        const LOW: u64 = 0x7f12_4500_1000;
        for (line, is) in [
            ("7f1245000000-7f1245010000 rw-p 00000000 00:00 0", true),
            ("7f1245000000-7f1245010000 rw-p 00000000 00:00 0 ", true),
            (
                "7f1245000000-7f1245010000 rw-p 00000000 00:00 0   [stack]",
                true,
            ),
            (
                "7f1245000000-7f1245010000 rw-p 00000000 00:00 0   [heap]",
                false,
            ),
            (
                "7f1245000000-7f1245010000 rw-p 00000000 08:01 7   /a file",
                false,
            ),
            ("7f1245000000-7f1245010000 rw-s 00000000 00:00 0", false),
            ("7f1245000000-7f1245010000 r--p 00000000 00:00 0", false),
            ("7f1245002000-7f1245010000 rw-p 00000000 00:00 0", false),
            ("7f1245000000-7f1245003000 rw-p 00000000 00:00 0", false),
            // An arena begins in it.
            ("7f1243ff0000-7f1245010000 rw-p 00000000 00:00 0", false),
            (
                "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(
                is_stack_of(line.as_bytes(), LOW, LOW + 0x4000),
                is,
                "{line}"
            );
        }
    }
}
