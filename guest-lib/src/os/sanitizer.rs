//! The compiler's sanitizers (`-fsanitize=address` and others), if the program has one.

use std::arch::asm;
use std::ffi::c_void;

/// Address of the first app, and pages of each, in programs with the thread or the memory sanitizer: in the range that
/// both have for programs, below the program itself. Not one of the usual size has room there.
pub(crate) const APPS: (u64, u32) = (0x5500_0000_0000, 0x10_0000);

/// The address of a function that the program may have, 0 if it has none.
macro_rules! address_of {
    ($name:literal) => {{
        let address: usize;
        // SAFETY: reads the address.
        unsafe {
            asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        address
    }};
}

/// The one that has a use of its own for most addresses of a process, if there is one: "thread" or "memory".
pub(crate) fn with_fixed_addresses() -> Option<&'static str> {
    if address_of!("__tsan_init") != 0 {
        Some("thread")
    } else if address_of!("__msan_init") != 0 {
        Some("memory")
    } else {
        None
    }
}

type OfMemory = unsafe extern "C" fn(*const c_void, usize);

/// Calls a sanitizer's function for memory, if there is one.
fn tell(function: usize, start: *const u8, size: usize) {
    if function != 0 {
        // SAFETY: a function of this type; it notes the addresses, or forgets what it knows of them.
        unsafe { std::mem::transmute::<usize, OfMemory>(function)(start.cast(), size) }
    }
}

/// What code on a stack has told the address sanitizer holds no more: it was abandoned.
pub(crate) fn forget_stack(low: *const u8, size: usize) {
    tell(address_of!("__asan_unpoison_memory_region"), low, size);
}

/// From here on the leak sanitizer looks for pointers in this memory.
pub(super) fn add_root(low: *const u8, size: usize) {
    tell(address_of!("__lsan_register_root_region"), low, size);
}

/// Takes [`add_root`] back.
pub(super) fn remove_root(low: *const u8, size: usize) {
    tell(address_of!("__lsan_unregister_root_region"), low, size);
}

#[cfg(test)]
mod tests {
    use super::APPS;
    use std::ops::Range;
    use vmsrs_protocol::{APP_BASE, APP_PAGES, MAX_APPS, PAGE_SIZE};

    /// What a sanitizer has a use of its own for.
    struct Own {
        sanitizer: &'static str,
        ranges: &'static [Range<u64>],
    }

    /// Sanitizers that leave most addresses alone: they use shadow memory with a gap in it, and a heap, which later
    /// versions have moved. (In the newest the kernel chooses the place of the address sanitizer's.)
    const FEW: &[Own] = &[
        Own {
            sanitizer: "address",
            ranges: &[
                0x7fff_8000..0x1000_7fff_8000,
                0x5000_0000_0000..0x5400_0000_0000,
                0x6000_0000_0000..0x6400_0000_2000,
            ],
        },
        Own {
            sanitizer: "leak",
            ranges: &[
                0x5000_0000_0000..0x5400_0000_0000,
                0x6000_0000_0000..0x6400_0000_2000,
            ],
        },
    ];

    /// Those that have a use for all addresses but the ranges of programs: shadow and metadata. What lies between these they
    /// keep inaccessible.
    const MOST: &[Own] = &[
        // As of GCC 12: shadow, metadata, traces of threads, the heap.
        Own {
            sanitizer: "thread, GCC 12",
            ranges: &[
                0x80_0000_0000..0x5500_0000_0000,
                0x5680_0000_0000..0x7e80_0000_0000,
            ],
        },
        Own {
            sanitizer: "thread, later",
            ranges: &[
                0x200_0000_0000..0x5500_0000_0000,
                0x5a00_0000_0000..0x7c00_0000_0000,
            ],
        },
        Own {
            sanitizer: "memory",
            ranges: &[
                0x100_0000_0000..0x5100_0000_0000,
                0x6000_0000_0000..0x7000_0000_0000,
            ],
        },
    ];

    /// Where Linux puts the lowest position-independent program.
    const PROGRAMS: u64 = 0x5555_5555_4000;

    fn usual() -> Range<u64> {
        APP_BASE..APP_BASE + u64::from(MAX_APPS) * u64::from(APP_PAGES) * u64::from(PAGE_SIZE)
    }

    fn small() -> Range<u64> {
        APPS.0..APPS.0 + u64::from(MAX_APPS) * u64::from(APPS.1) * u64::from(PAGE_SIZE)
    }

    /// The sanitizers that have a use of their own for some of these addresses.
    fn users<'a>(of: &'a [Own], addresses: &Range<u64>) -> Vec<&'a str> {
        of.iter()
            .filter(|own| {
                own.ranges
                    .iter()
                    .any(|range| range.start < addresses.end && addresses.start < range.end)
            })
            .map(|own| own.sanitizer)
            .collect()
    }

    #[test]
    fn apps_are_clear_of_what_the_address_and_the_leak_sanitizer_use() {
        assert_eq!(users(FEW, &usual()), [""; 0]);
    }

    #[test]
    fn small_apps_are_clear_of_what_the_thread_and_the_memory_sanitizer_use() {
        assert_eq!(users(MOST, &small()), [""; 0]);
        assert!(small().end <= PROGRAMS);
    }

    /// If this fails, apps of a device can have a range that all programs can map: [`super::with_fixed_addresses`] is not
    /// needed then.
    #[test]
    fn no_range_that_all_sanitizers_leave_holds_the_apps_of_a_device() {
        let wanted = usual().end - usual().start;
        let all = || FEW.iter().chain(MOST).flat_map(|own| own.ranges);
        let end = 0x8000_0000_0000;
        // A free range begins where another one ends.
        let free = all().map(|range| range.end).chain([0]).filter_map(|start| {
            let next = all()
                .filter(|range| range.end > start)
                .map(|range| range.start);
            next.chain([end]).min()?.checked_sub(start)
        });
        assert!(free.max().is_some_and(|largest| largest < wanted));
    }
}
