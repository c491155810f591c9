//! The list of robust mutexes that a thread has locked (`set_robust_list`): the kernel follows it when the thread ends, the
//! C library whenever the thread locks one or unlocks it.

use std::ptr::{self, NonNull};

/// `struct robust_list_head`. A link leads to the next one; its lowest bit marks a kind of mutex. The C library has the link
/// back one word before each.
#[repr(C)]
struct Head {
    first: usize,
    offset: i64,
    /// The mutex that is being locked or unlocked, or 0.
    pending: usize,
}

/// The list of the thread that it was made on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RobustList(Option<NonNull<Head>>);

/// More are a circle.
const MUTEXES_MAX: usize = 10_000;

/// Without the mark.
const fn address(link: usize) -> usize {
    link & !1
}

impl RobustList {
    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let (mut head, mut length) = (ptr::null_mut::<Head>(), 0usize);
        // SAFETY: fills both.
        let found =
            unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
        let is_known = found == 0 && length == size_of::<Head>();
        Self(NonNull::new(head).filter(|_| is_known))
    }

    /// Whether there is anything to drop.
    pub(crate) fn is_in_use(self) -> bool {
        // SAFETY: the C library's, as long as the thread lives, which this is called on.
        self.0.is_some_and(|head| unsafe {
            let head = head.as_ptr();
            (*head).pending != 0 || address((*head).first) != head as usize
        })
    }

    /// Takes mutexes in abandoned frames off the list, and the one that was being locked. Reads all that are on the list: the
    /// caller survives if one is not there any more. False if a link and the one back do not agree: abandoned frames may have
    /// been overwritten.
    pub(crate) fn drop_dead(self, is_dead: impl Fn(u64) -> bool) -> bool {
        let Some(head) = self.0 else {
            return true;
        };
        let head = head.as_ptr();
        // SAFETY: as above. Links lead to mutexes, and back to the head.
        unsafe {
            (*head).pending = 0;
            let mut from = &raw mut (*head).first;
            for _ in 0..MUTEXES_MAX {
                let link = from.read();
                if address(link) == head as usize {
                    return true;
                }
                let next = address(link) as *mut usize;
                if address(next.wrapping_sub(1).read()) != from as usize {
                    return false;
                }
                if !is_dead(next as u64) {
                    from = next;
                    continue;
                }
                let after = next.read();
                let back = (address(after) as *mut usize).wrapping_sub(1);
                if address(back.read()) != next as usize {
                    return false;
                }
                from.write(after);
                back.write(from as usize);
            }
        }
        false
    }

    /// How many there are. Reads all that are on the list, as [`RobustList::drop_dead`] does.
    pub(crate) fn count(self) -> u32 {
        let Some(head) = self.0 else {
            return 0;
        };
        let end = head.as_ptr() as usize;
        let mut count = 0;
        // SAFETY: as above.
        let mut link = unsafe { (*head.as_ptr()).first };
        while address(link) != end && (count as usize) < MUTEXES_MAX {
            count += 1;
            // SAFETY: links lead to mutexes, and back to the head.
            link = unsafe { (address(link) as *const usize).read() };
        }
        count
    }

    /// Takes all mutexes off the list, without a look at them: nobody learns of those that the thread leaves locked when it ends.
    pub(crate) fn empty(self) {
        if let Some(head) = self.0 {
            // SAFETY: as above.
            unsafe { (*head.as_ptr()).first = head.as_ptr() as usize };
        }
    }
}
