//! Which views this process has, so that each is unmapped once, however many copies of its description there are.
//!
//! A table without locks: a thread that is stopped for good at any instruction costs the others nothing but a place. A child of
//! a fork has an empty one, whatever way it was forked. A description may have come from another process, through memory that they
//! share or before a restart, at the same addresses: so each table has a random number.

use std::io;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Views of a process at most. A process has 65,530 mappings, unless the administrator allows more.
pub(crate) const PLACES: usize = 1 << 18;

/// The serial number of a place that is being filled or emptied.
const BUSY: u64 = u64::MAX;

/// Bits of [`Table::free`] that are a place's number, counted from 1; above them is a count of the list's changes.
const NUMBER: u64 = u32::MAX as u64;

/// What an entry is known by: its place, its serial number, which the table does not use again, and the table's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) place: u64,
    pub(crate) serial: u64,
    pub(crate) table: u64,
}

/// A view, or nothing if the serial number is 0.
#[repr(C)]
struct Entry {
    serial: AtomicU64,
    first: AtomicU64,
    length: AtomicU64,
    /// Number of the next free place, or 0.
    next: AtomicU64,
}

/// All zero at first.
#[repr(C)]
struct Table {
    /// Number of the first place of those that were given back, or 0.
    free: AtomicU64,
    /// Places that were given out at least once.
    used: AtomicU64,
    /// The last serial number.
    serial: AtomicU64,
    /// The table's number, once it has one.
    number: AtomicU64,
    entries: [Entry; PLACES],
}

/// The process's table, once it has one.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

/// Notes a view of so many bytes.
///
/// # Errors
///
/// `ENOSPC` if there are too many, and those of `mmap` and `madvise`.
pub(crate) fn add(first: u64, length: u64) -> io::Result<Ticket> {
    table()?.add(first, length)
}

/// Forgets a view. Returns whether the process has had exactly this one.
#[must_use]
pub(crate) fn remove(ticket: Ticket, first: u64, length: u64) -> bool {
    // SAFETY: null, or the table, which stays.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() };
    table.is_some_and(|table| table.remove(ticket, first, length))
}

/// The process's table.
fn table() -> io::Result<&'static Table> {
    // SAFETY: null, or the table, which stays.
    if let Some(table) = unsafe { TABLE.load(Ordering::Acquire).as_ref() } {
        return Ok(table);
    }
    let made = map()?;
    let kept = TABLE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let table = match kept {
        Ok(_) => made,
        Err(other) => {
            // SAFETY: the mapping made above, which nobody knows.
            unsafe { libc::munmap(made.cast(), size_of::<Table>()) };
            other
        }
    };
    // SAFETY: a table, which stays.
    Ok(unsafe { &*table })
}

/// An empty table, which a fork empties again.
fn map() -> io::Result<*mut Table> {
    let size = size_of::<Table>();
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing.
    let place = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the new mapping, which nobody knows yet.
    if unsafe { libc::madvise(place, size, libc::MADV_WIPEONFORK) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::munmap(place, size) };
        return Err(error);
    }
    Ok(place.cast())
}

/// A number that hardly any other process has.
fn random() -> u64 {
    let mut number = 0_u64;
    let size = size_of_val(&number);
    // Not the C library's function, which is a cancellation point.
    // SAFETY: so many bytes are the number's.
    let read = unsafe {
        libc::syscall(
            libc::SYS_getrandom,
            &raw mut number,
            size,
            libc::GRND_NONBLOCK,
        )
    };
    if usize::try_from(read) == Ok(size) {
        return number;
    }
    // Right after the start of a system.
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: no conditions, and room for a time.
    let process = unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        libc::getpid()
    };
    let time = now.tv_sec.wrapping_mul(1_000_000_000) + now.tv_nsec;
    time.cast_unsigned() << 22 ^ u64::from(process.cast_unsigned())
}

impl Table {
    fn add(&self, first: u64, length: u64) -> io::Result<Ticket> {
        let table = self.number();
        loop {
            let place = self
                .pop()
                .or_else(|| self.unused())
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
            let entry = &self.entries[place as usize];
            // In a child that was forked in the middle of this, the place may be given out twice.
            let taken =
                entry
                    .serial
                    .compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
            entry.first.store(first, Ordering::Relaxed);
            entry.length.store(length, Ordering::Relaxed);
            entry.serial.store(serial, Ordering::Release);
            return Ok(Ticket {
                place,
                serial,
                table,
            });
        }
    }

    fn remove(&self, ticket: Ticket, first: u64, length: u64) -> bool {
        let Ticket {
            place,
            serial,
            table,
        } = ticket;
        let entry = usize::try_from(place)
            .ok()
            .and_then(|place| self.entries.get(place));
        let Some(entry) = entry else {
            return false;
        };
        // If another view gets the place meanwhile, the exchange finds another number.
        if [0, BUSY].contains(&serial)
            || table != self.number.load(Ordering::Relaxed)
            || entry.serial.load(Ordering::Acquire) != serial
            || entry.first.load(Ordering::Relaxed) != first
            || entry.length.load(Ordering::Relaxed) != length
            || entry
                .serial
                .compare_exchange(serial, BUSY, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return false;
        }
        entry.serial.store(0, Ordering::Release);
        self.push(place);
        true
    }

    /// The table's number.
    fn number(&self) -> u64 {
        let known = self.number.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        let made = random() | 1;
        self.number
            .compare_exchange(0, made, Ordering::Relaxed, Ordering::Relaxed)
            .map_or_else(|other| other, |_| made)
    }

    /// A place that was never given out.
    fn unused(&self) -> Option<u64> {
        let next = |used| (used < PLACES as u64).then_some(used + 1);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .ok()
    }

    /// A place that was given back.
    fn pop(&self) -> Option<u64> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let place = (head & NUMBER).checked_sub(1)?;
            let entry = self.entries.get(usize::try_from(place).ok()?)?;
            let next = entry.next.load(Ordering::Relaxed);
            match self.change(head, next) {
                Ok(_) => return Some(place),
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, place: u64) {
        let next = &self.entries[place as usize].next;
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            next.store(head & NUMBER, Ordering::Relaxed);
            match self.change(head, place + 1) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Puts another number at the head of the list, which is told from the same one at another time.
    fn change(&self, head: u64, number: u64) -> Result<u64, u64> {
        let changed = (head & !NUMBER).wrapping_add(NUMBER + 1) | number & NUMBER;
        self.free
            .compare_exchange(head, changed, Ordering::AcqRel, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A table of the test's own.
    fn fresh() -> &'static Table {
        // SAFETY: a new table, which stays.
        unsafe { &*map().unwrap() }
    }

    #[test]
    fn what_was_added_is_removed_once_and_by_all_of_its_fields() {
        let table = fresh();
        let ticket = table.add(4096, 10).unwrap();
        let other = table.add(8192, 10).unwrap();
        let with = |change: fn(&mut Ticket)| {
            let mut wrong = ticket;
            change(&mut wrong);
            wrong
        };
        for (wrong, first, length) in [
            (ticket, 8192, 10),
            (ticket, 4096, 11),
            (with(|wrong| wrong.serial += 1), 4096, 10),
            (with(|wrong| wrong.serial = 0), 4096, 10),
            (with(|wrong| wrong.serial = BUSY), 4096, 10),
            (with(|wrong| wrong.place += 1), 4096, 10),
            (with(|wrong| wrong.place = PLACES as u64), 4096, 10),
            (with(|wrong| wrong.place = u64::MAX), 4096, 10),
            (with(|wrong| wrong.table += 1), 4096, 10),
            (with(|wrong| wrong.table = 0), 4096, 10),
        ] {
            assert!(!table.remove(wrong, first, length), "{wrong:?}");
        }
        assert!(table.remove(ticket, 4096, 10));
        assert!(!table.remove(ticket, 4096, 10));
        assert!(!table.remove(with(|none| none.serial = 0), 4096, 10));
        // The same place and bytes are another view.
        let again = table.add(4096, 10).unwrap();
        assert_eq!(again.place, ticket.place);
        assert!(!table.remove(ticket, 4096, 10));
        assert!(table.remove(again, 4096, 10) && table.remove(other, 8192, 10));
    }

    #[test]
    fn all_places_can_be_had_again_and_no_more() {
        let table = fresh();
        for _ in 0..2 {
            let tickets: Vec<_> = (0..PLACES as u64)
                .map(|number| table.add(number, 1).unwrap())
                .collect();
            let places: BTreeSet<_> = tickets.iter().map(|ticket| ticket.place).collect();
            assert_eq!(places.len(), PLACES);
            let full = table.add(0, 1).unwrap_err();
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
            for (number, ticket) in tickets.into_iter().enumerate() {
                assert!(table.remove(ticket, number as u64, 1));
            }
        }
    }

    #[test]
    fn of_threads_that_remove_the_same_one_does() {
        const ROUNDS: u64 = 20_000;
        let table = fresh();
        let won = AtomicU64::new(0);
        let last = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (won, last) = (&won, &last);
            for thread in 0..3 {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let first = thread * ROUNDS + round;
                        let own = table.add(first, 1).unwrap();
                        // Whichever was published last: its place and serial number in one word.
                        let published = own.serial << 32 | own.place;
                        let other = last.swap(published, Ordering::AcqRel);
                        for seen in [published, other] {
                            let ticket = Ticket {
                                place: seen & NUMBER,
                                serial: seen >> 32,
                                table: own.table,
                            };
                            let entry = &table.entries[ticket.place as usize];
                            let first = entry.first.load(Ordering::Relaxed);
                            if table.remove(ticket, first, 1) {
                                won.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        // Each thread tries to remove its own, so none is left.
        assert_eq!(won.into_inner(), 3 * ROUNDS);
        assert!(table.used.load(Ordering::Relaxed) <= 6);
    }

    #[test]
    fn a_place_that_is_given_out_twice_is_used_once() {
        let table = fresh();
        let first = table.add(4096, 1).unwrap();
        // As in a child that was forked in the middle.
        table.used.store(0, Ordering::Relaxed);
        let second = table.add(8192, 1).unwrap();
        assert_ne!(first.place, second.place);
        table.push(first.place);
        let third = table.add(12288, 1).unwrap();
        assert!(third.place != first.place && third.place != second.place);
        assert!(table.remove(first, 4096, 1) && table.remove(second, 8192, 1));
    }

    #[test]
    fn a_child_has_an_empty_table_with_another_number() {
        let ticket = add(4096, 1).unwrap();
        // SAFETY: the child calls nothing that waits for another thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let own = add(4096, 1);
            let right = !remove(ticket, 4096, 1)
                && own.is_ok_and(|own| own.table != ticket.table && remove(own, 4096, 1));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(remove(ticket, 4096, 1));
    }
}
