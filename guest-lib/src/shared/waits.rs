//! Which request waits for which, without a driver: finds cycles, which would wait forever.

use crate::os::lock::Lock;

/// A request that waits for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    tag: u64,
    domain: u32,
}

/// All waits of an app.
#[derive(Debug, Default)]
pub(crate) struct Waits(Lock<Vec<Wait>>);

impl Waits {
    /// Notes that a request waits for a domain; false if that would close a cycle; then nothing is
    /// noted. `holder` tells which request holds a domain, 0 for none.
    pub(crate) fn enter(&self, tag: u64, domain: u32, holder: impl Fn(u32) -> u64) -> bool {
        self.0.with(|waits| {
            let wait = Wait { tag, domain };
            let mut to_follow = vec![wait];
            let mut place = 0;
            while let Some(&followed) = to_follow.get(place) {
                place += 1;
                let holder = holder(followed.domain);
                if holder == tag {
                    return false;
                }
                for wait in waits.iter().filter(|wait| wait.tag == holder) {
                    if !to_follow.contains(wait) {
                        to_follow.push(*wait);
                    }
                }
            }
            waits.push(wait);
            true
        })
    }

    /// The wait is over.
    pub(crate) fn leave(&self, tag: u64, domain: u32) {
        self.0.with(|waits| {
            if let Some(place) = waits.iter().position(|wait| *wait == Wait { tag, domain }) {
                waits.swap_remove(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_request_that_closes_a_cycle_is_refused() {
        let waits = Waits::default();
        // Request n holds domain n.
        let holder = u64::from;
        assert!(waits.enter(1, 2, holder));
        assert!(waits.enter(2, 3, holder));
        assert!(waits.enter(5, 1, holder), "a chain is not a cycle");
        assert!(!waits.enter(3, 1, holder));
        assert!(waits.enter(3, 4, holder));
        waits.leave(2, 3);
        assert!(waits.enter(4, 1, holder), "the chain is cut");
        assert!(!waits.enter(2, 4, holder), "a second wait of a request");
    }
}
