//! Protection keys: who reaches which drafts, and who writes to guarded memory.
//!
//! All threads share a page table, so a draft that is writable for its request would be writable for all
//! threads. The driver puts a protection key into the entries of a request's drafts
//! ([`vmsrs_protocol::shared::ThreadControl::key`]), and each thread's PKRU register says which keys
//! it may use (Intel SDM volume 3, 4.6.2; pkeys(7)): in a request its own, outside requests none
//! of the library's. Changing PKRU takes no system call.
//!
//! The driver opens the key for a thread that makes a draft, so that a request which writes nothing does not
//! touch PKRU. A thread that joins a request, or goes on with one, may meet drafts of others, and opens the key itself.
//!
//! Keys are few. The library takes what the kernel gives, once in a process, and a request has one of
//! them from start to end, whatever threads work for it: one that no other request in flight
//! has. With more requests in flight than keys some share one, and are not protected from each other's
//! stray writes.
//!
//! Some keys are those of hot domains ([`crate::shared::hot`]): everybody may read with them, and a request that is inside
//! such a domain may write.
//!
//! One key is used for guarded memory ([`crate::guard`]) when a server asks for it: in a request it allows
//! reads only, outside requests it is open.

use crate::os::xsave;
use crate::shared::keys::{Entry, FIRST_OF_DOMAINS, KEYS, NOT_OURS, Table, next};
use crate::sync::AtomicU64;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

/// CPUID leaf 7, ECX: protection keys are there and the kernel has turned them on.
const OSPKE: u32 = 1 << 4;

/// `pkey_alloc`: no access with the key for the calling thread.
const PKEY_DISABLE_ACCESS: libc::c_ulong = 1;

/// Both bits that PKRU has for a key.
const fn bits(key: u32) -> u32 {
    0b11 << (2 * key)
}

/// A set of keys, and what PKRU says about them. Each key has two bits in PKRU: access disabled,
/// and write disabled above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Keys {
    /// Both bits of each key of the set.
    both: u32,
}

impl Keys {
    const fn with(self, key: u32) -> Self {
        Self {
            both: self.both | bits(key),
        }
    }

    /// The keys' numbers.
    fn numbers(self) -> impl Iterator<Item = u32> {
        (1..KEYS as u32).filter(move |&key| self.both & bits(key) != 0)
    }

    const fn is_empty(self) -> bool {
        self.both == 0
    }

    /// PKRU with all keys of the set open.
    const fn open_all(self, pkru: u32) -> u32 {
        pkru & !self.both
    }
}

/// PKRU's bits for "access disabled" and for "write disabled".
const ACCESS: u32 = 0x5555_5555;
const WRITE: u32 = !ACCESS;

/// Both bits of the keys that hot domains may have.
const OF_DOMAINS: u32 = u32::MAX << (2 * FIRST_OF_DOMAINS);

/// With fewer keys, all are those of requests, which have two thirds otherwise.
const PLENTY: usize = 12;

/// What PKRU says about the library's keys. In the lower half the bits of these keys; in the upper half what they
/// are in a request that has none: the keys of drafts closed, those of hot domains and that of guarded memory, which no
/// request has, open for reading. Bit 0, of key 0, which is never the library's, says that there is guarded memory. 0 until [`install`]
/// asked the kernel for keys. One word, since each request reads it on its way in and out.
static OURS: AtomicU64 = AtomicU64::new(0);

/// Which requests have which of them.
static TABLE: Table = Table {
    entries: [const { Entry(AtomicU64::new(NOT_OURS)) }; KEYS],
};

/// See [`OURS`].
const GUARDS: u32 = 1;

/// The library's keys: see [`OURS`].
#[derive(Clone, Copy)]
pub(crate) struct Ours(u64);

impl Ours {
    const fn new(drafts: Keys, domains: Keys, guard: u32) -> Self {
        let (both, writes) = match guard {
            0 => (drafts.both | domains.both, domains.both & WRITE),
            guard => (
                drafts.both | domains.both | bits(guard) | GUARDS,
                (domains.both | bits(guard)) & WRITE,
            ),
        };
        Self(both as u64 | ((drafts.both & ACCESS | writes) as u64) << 32)
    }

    pub(crate) const fn are_none(self) -> bool {
        self.0 == 0
    }

    /// The bits of all of them.
    const fn both(self) -> u32 {
        self.0 as u32 & !GUARDS
    }

    /// Whether one of them is that of guarded memory.
    pub(crate) const fn guards(self) -> bool {
        self.0 as u32 & GUARDS != 0
    }

    const fn inside(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The key of guarded memory, or 0.
    const fn guard(self) -> u32 {
        match self.inside() & WRITE & !OF_DOMAINS {
            0 => 0,
            bit => bit.trailing_zeros() / 2,
        }
    }

    const fn drafts(self) -> Keys {
        let closed = self.inside() & ACCESS;
        Keys {
            both: closed | closed << 1,
        }
    }

    const fn domains(self) -> Keys {
        let read_only = self.inside() & WRITE & OF_DOMAINS;
        Keys {
            both: read_only | read_only >> 1,
        }
    }

    /// In a request with that key (0: none).
    const fn change_inside(self, key: u32) -> Change {
        Change {
            keep: !self.both(),
            // A closed key has no other bit than this.
            set: self.inside() & !1u32.wrapping_shl(2 * key),
        }
    }

    /// Outside of requests.
    const fn change_outside(self) -> Change {
        let set = if self.guards() {
            self.inside() & !bits(self.guard())
        } else {
            self.inside()
        };
        Change {
            keep: !self.both(),
            set,
        }
    }

    /// Guarded memory is open for writing.
    const fn open_guard(self) -> Change {
        let keep = match self.guard() {
            0 => u32::MAX,
            guard => !bits(guard),
        };
        Change { keep, set: 0 }
    }
}

/// A change of PKRU: the bits that stay, and those that are set.
#[derive(Clone, Copy)]
struct Change {
    keep: u32,
    set: u32,
}

/// The library's keys at the moment.
#[inline]
pub(crate) fn ours() -> Ours {
    Ours(OURS.load(Ordering::Relaxed))
}

fn set_ours(ours: Ours) {
    OURS.store(ours.0, Ordering::Relaxed);
}

/// Takes the keys, once in a process. Without protection keys in the CPU or the kernel, or with
/// `VMSRS_PKU=off`, there are none, and everything works without them.
pub(crate) fn install() {
    // Under the lock of opening apps, where nothing is cut short: nobody waits here.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let wanted = std::env::var_os("VMSRS_PKU").is_none_or(|value| value != "off");
        #[allow(
            unused_unsafe,
            reason = "safe in newer compilers than the oldest supported"
        )]
        // SAFETY: every x86-64 CPU has the instruction.
        let features = unsafe { __cpuid_count(7, 0) };
        if wanted && features.ecx & OSPKE != 0 {
            let given = allocate();
            let domains = Keys {
                both: if given.numbers().count() < PLENTY {
                    0
                } else {
                    given.both & OF_DOMAINS
                },
            };
            let drafts = Keys {
                both: given.both & !domains.both,
            };
            set_ours(Ours::new(drafts, domains, 0));
            xsave::install();
            drafts.numbers().for_each(|key| TABLE.put(key));
            // Threads that are made from now on inherit that they may read with the keys of domains.
            close();
        }
    });
}

/// All keys that the kernel gives.
fn allocate() -> Keys {
    let mut keys = Keys::default();
    loop {
        // SAFETY: the call takes two numbers; a new key guards no memory yet.
        let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, PKEY_DISABLE_ACCESS) };
        match u32::try_from(key) {
            Ok(key) if (1..KEYS as u32).contains(&key) => keys = keys.with(key),
            _ => return keys,
        }
    }
}

/// A key that a request has, or had last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    /// 0 where there are none.
    pub(crate) number: u32,
    /// [`Table::free`] when the request took it, or had given it back.
    pub(crate) free: u64,
}

/// Gives a request that begins the key of one before, if nobody has had it since. True also if there are no keys. What
/// the calling thread may do stays as it is.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn take_again(ours: Ours, last: Key) -> bool {
    ours.are_none() || TABLE.take_again(last.number, last.free)
}

/// Another key for a request that begins, `wanted` if nobody has it.
pub(crate) fn take_other(wanted: u32) -> Key {
    let number = TABLE.take(wanted);
    Key {
        number,
        free: TABLE.free(number),
    }
}

/// The request that had the key is over: none of its drafts is in flight, and no thread has the key open. Returns
/// the key as [`take_again`] wants it.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn give_back(key: Key) -> Key {
    if key.number == 0 {
        return key;
    }
    if TABLE.give_back_alone(key.number, key.free) {
        return Key {
            free: next(key.free),
            ..key
        };
    }
    give_back_shared(key.number)
}

#[cold]
fn give_back_shared(number: u32) -> Key {
    TABLE.give_back(number);
    Key {
        number,
        free: TABLE.free(number),
    }
}

/// A key for tests, where the kernel gives none.
#[cfg(test)]
pub(crate) fn put_for_test(key: u32) {
    TABLE.put(key);
}

/// How many requests have the key.
#[cfg(test)]
pub(crate) fn requests_with(key: u32) -> u32 {
    TABLE.entries[key as usize].0.load(Ordering::Relaxed) as u32
}

/// In the child of a fork, which has no request: closes what its only thread had open, and has all keys
/// again. Async-signal-safe.
pub(crate) fn forget() {
    close();
    ours().drafts().numbers().for_each(|key| TABLE.put(key));
}

/// The key of guarded memory, open for the calling thread, which is outside requests; made of one that no
/// request has if there is none yet. Nothing without protection keys, or when requests have all of them.
pub(crate) fn guard_key() -> Option<u32> {
    let mut ours = ours();
    if ours.guard() == 0 {
        let guard = TABLE.withdraw()?;
        let both = ours.drafts().both & !bits(guard);
        let guarding = Ours::new(Keys { both }, ours.domains(), guard);
        let changed =
            OURS.compare_exchange(ours.0, guarding.0, Ordering::Relaxed, Ordering::Relaxed);
        ours = match changed {
            Ok(_) => guarding,
            Err(now) => {
                // Another thread was first.
                TABLE.put(guard);
                Ours(now)
            }
        };
    }
    close();
    Some(ours.guard())
}

/// Lets the calling thread write to guarded memory, until it begins or ends a request, or returns from the
/// handler of a signal. Async-signal-safe.
pub(crate) fn open_guard() {
    let ours = ours();
    update(ours, ours.open_guard());
}

/// The keys of drafts and of hot domains, a bit each, as [`vmsrs_protocol::ioctl::IoctlThread::keys`] has them.
pub(crate) fn all_keys() -> u32 {
    let set = |keys: Keys| keys.numbers().fold(0, |all, key| all | 1 << key);
    set(ours().drafts()) | set(ours().domains()) << KEYS
}

/// The keys of hot domains.
pub(crate) fn domain_keys() -> impl Iterator<Item = u32> {
    ours().domains().numbers()
}

/// Lets the calling thread, which is inside a hot domain from now on, write with its key.
pub(crate) fn enter_domain(key: u32) {
    update(
        ours(),
        Change {
            keep: !bits(key),
            set: 0,
        },
    );
}

/// Takes [`enter_domain`] back.
pub(crate) fn leave_domain(key: u32) {
    update(
        ours(),
        Change {
            keep: !bits(key),
            set: bits(key) & WRITE,
        },
    );
}

/// Whether the calling thread may write with one of the keys whose bits for "write disabled" these are. There are keys.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn may_write(writes: u32) -> bool {
    !read() & writes != 0
}

/// For a thread that works for a request: it may use the key with that number (0: none) and
/// no other of the library's, and not write to guarded memory.
#[cold]
pub(crate) fn open(ours: Ours, key: u32) {
    update(ours, ours.change_inside(key));
}

/// What the keys that are not the library's allow a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights(u32);

impl Rights {
    /// The calling thread's; nothing where the library has no keys.
    pub(crate) fn current() -> Self {
        let ours = ours();
        if ours.are_none() {
            return Self::default();
        }
        Self(read() & !ours.both())
    }

    /// For a thread whose request has failed: makes them the calling thread's, which is outside of requests.
    pub(crate) fn restore(self) {
        let ours = ours();
        if !ours.are_none() {
            write(self.0 | ours.change_outside().set);
        }
    }
}

/// Makes the calling thread's PKRU what it was for the code that a signal handler has interrupted: the handler leaves by a
/// jump. Async-signal-safe.
///
/// # Safety
///
/// The kernel's context of this thread.
pub(crate) unsafe fn resume(context: *const libc::ucontext_t) {
    // SAFETY: passed on to the caller.
    if let Some(pkru) = unsafe { xsave::pkru(context) } {
        write(pkru);
    }
}

/// For a thread outside requests: none of the library's keys, and all of guarded memory.
/// Async-signal-safe.
#[cold]
pub(crate) fn close() {
    let ours = ours();
    update(ours, ours.change_outside());
}

/// Runs the library's own code with all of its keys open, to look at what another request may be
/// writing. If a signal ends the request meanwhile, its landing closes them.
pub(crate) fn with_all<T>(code: impl FnOnce() -> T) -> T {
    let ours = ours();
    if ours.drafts().is_empty() {
        return code();
    }
    let before = read();
    // A thread from before the library cannot even read with the keys of domains.
    let all = Keys {
        both: ours.drafts().both | ours.domains().both,
    };
    write(all.open_all(before));
    let value = code();
    write(before);
    value
}

#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
fn update(ours: Ours, change: Change) {
    if ours.are_none() {
        return;
    }
    compiler_fence(Ordering::SeqCst);
    // SAFETY: as in read() and write(). RDPKRU leaves 0 in EDX.
    unsafe {
        asm!(
            "rdpkru",
            "and eax, {keep:e}",
            "or eax, {set:e}",
            "wrpkru",
            keep = in(reg) change.keep,
            set = in(reg) change.set,
            in("ecx") 0,
            out("eax") _,
            out("edx") _,
            options(nostack)
        );
    }
    compiler_fence(Ordering::SeqCst);
}

/// The calling thread's PKRU. Only called when there are keys.
#[inline]
fn read() -> u32 {
    debug_assert_ne!(OURS.load(Ordering::Relaxed), 0);
    let pkru;
    // SAFETY: there are keys, so CR4.PKE is set and the instruction is known. ECX must be 0; EDX
    // becomes 0.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    pkru
}

/// Sets the calling thread's PKRU. Only called when there are keys.
#[inline]
fn write(pkru: u32) {
    debug_assert_ne!(OURS.load(Ordering::Relaxed), 0);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: as in read(). Only bits of the library's keys change, and those are on drafts and on what
    // the server has guarded alone.
    // The assembly counts as an access to all memory, so nothing moves across it.
    unsafe {
        asm!("wrpkru", in("eax") pkru, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
    }
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_DEFAULT: u32 = 0x5555_5554;

    fn keys(list: impl IntoIterator<Item = u32>) -> Keys {
        list.into_iter().fold(Keys::default(), Keys::with)
    }

    fn apply(change: Change, pkru: u32) -> u32 {
        (pkru & change.keep) | change.set
    }

    fn inside(ours: Ours, pkru: u32, key: u32) -> u32 {
        apply(ours.change_inside(key), pkru)
    }

    fn outside(ours: Ours, pkru: u32) -> u32 {
        apply(ours.change_outside(), pkru)
    }

    /// What PKRU says of a key: (access disabled, write disabled).
    fn rights(pkru: u32, key: u32) -> (bool, bool) {
        let bits = pkru >> (2 * key);
        (bits & 1 != 0, bits & 2 != 0)
    }

    #[test]
    fn a_request_opens_its_own_key_only() {
        let ours = Ours::new(keys(1..16), Keys::default(), 0);
        for own in 1..16 {
            let pkru = inside(ours, LINUX_DEFAULT, own);
            for key in 1..16 {
                assert_eq!(rights(pkru, key), (key != own, false));
            }
        }
    }

    #[test]
    fn outside_of_requests_pkru_is_linuxs_default() {
        let ours = Ours::new(keys(1..16), Keys::default(), 0);
        let within = inside(ours, LINUX_DEFAULT, 7);
        assert_eq!(outside(ours, within), LINUX_DEFAULT);
        assert_eq!(inside(ours, within, 0), LINUX_DEFAULT);
        assert_eq!(outside(ours, 0), LINUX_DEFAULT);
        assert_eq!(outside(ours, u32::MAX), LINUX_DEFAULT | 0b11);
    }

    #[test]
    fn keys_that_are_not_ours_and_key_0_stay_as_they_are() {
        let ours = Ours::new(keys([2, 3, 15]), Keys::default(), 0);
        for pkru in [0, u32::MAX, LINUX_DEFAULT, 0x1234_5678, 0xaaaa_aaa8] {
            for new in [
                outside(ours, pkru),
                inside(ours, pkru, 3),
                inside(ours, pkru, 15),
                ours.drafts().open_all(pkru),
            ] {
                for key in (0..16).filter(|key| ![2, 3, 15].contains(key)) {
                    assert_eq!(rights(new, key), rights(pkru, key));
                }
            }
        }
    }

    #[test]
    fn switching_keys_leaves_no_trace_of_the_first() {
        let ours = Ours::new(keys([1, 4, 9]), Keys::default(), 0);
        let first = inside(ours, LINUX_DEFAULT, 4);
        assert_eq!(inside(ours, first, 9), inside(ours, LINUX_DEFAULT, 9));
        let all = ours.drafts();
        assert_eq!(all.open_all(first), all.open_all(LINUX_DEFAULT));
    }

    #[test]
    fn guarded_memory_is_read_only_in_requests() {
        let domains = keys(FIRST_OF_DOMAINS..16);
        let all =
            (1..FIRST_OF_DOMAINS).flat_map(|guard| [(guard, domains), (guard, Keys::default())]);
        for (guard, domains) in all {
            let drafts = keys((1..16).filter(|&key| key != guard && domains.both & bits(key) == 0));
            let (ours, without) = (
                Ours::new(drafts, domains, guard),
                Ours::new(drafts, domains, 0),
            );
            assert_eq!(
                (ours.guard(), ours.drafts(), ours.domains()),
                (guard, drafts, domains)
            );
            for pkru in [0, u32::MAX, LINUX_DEFAULT] {
                for own in (0..16).filter(|&key| key != guard) {
                    let within = inside(ours, pkru, own);
                    assert_eq!(rights(within, guard), (false, true));
                    let opened = apply(ours.open_guard(), within);
                    assert_eq!(rights(opened, guard), (false, false));
                    let without_request = outside(ours, within);
                    assert_eq!(rights(without_request, guard), (false, false));
                    for key in (0..16).filter(|&key| key != guard) {
                        let expected = inside(without, pkru, own);
                        assert_eq!(rights(within, key), rights(expected, key));
                        assert_eq!(rights(opened, key), rights(expected, key));
                        let expected = outside(without, pkru);
                        assert_eq!(rights(without_request, key), rights(expected, key));
                    }
                }
            }
        }
    }

    #[test]
    fn everybody_reads_with_the_key_of_a_hot_domain_and_who_is_inside_writes() {
        let domains = keys(FIRST_OF_DOMAINS..16);
        let ours = Ours::new(keys(1..FIRST_OF_DOMAINS), domains, 0);
        for pkru in [0, u32::MAX, LINUX_DEFAULT] {
            for own in 0..FIRST_OF_DOMAINS {
                for place in [inside(ours, pkru, own), outside(ours, pkru)] {
                    for key in domains.numbers() {
                        assert_eq!(rights(place, key), (false, true));
                    }
                }
            }
        }
    }

    #[test]
    fn without_keys_nothing_changes() {
        let none = Ours::new(Keys::default(), Keys::default(), 0);
        assert!(none.are_none() && none.drafts().is_empty());
        for changed in [
            inside(none, 0x1234_5678, 0),
            outside(none, 0x1234_5678),
            apply(none.open_guard(), 0x1234_5678),
        ] {
            assert_eq!(changed, 0x1234_5678);
        }
    }
}
