//! Which of the campaign's kinds are made, and where.

use vmsrs_campaign::arm::Point;
use vmsrs_campaign::kind::{Kind, Origin};

/// Places that requests of the servers pass: these have no defers, and their requests have one thread.
const POINTS: [Point; 8] = [
    Point::Start,
    Point::End,
    Point::Root,
    Point::Alloc,
    Point::Free,
    Point::Copy,
    Point::Library,
    Point::Moment,
];

/// Changed calls that are left out at allocations: those that fail, which servers answer as they do without memory, and
/// wrong pointers into the request's own domain, which may be blocks of others that it may write to.
pub(in crate::guest) const LEFT_OUT: [&str; 3] = ["skip", "elsewhere", "flip"];
/// Kinds that ask for something that only the ledger has: handlers of signals.
const OF_THE_LEDGER: [&str; 2] = ["handler", "handler-jump"];
/// Where copies are changed: in domains, and in memory between pages that nobody can touch. Connections, responses and
/// statistics are ordinary memory, which nothing protects.
pub(in crate::guest) const COPIES: &str = "a0000000000-510000000000";

/// The errors of a kind and where they are made; nothing if it cannot be made here.
pub(in crate::guest) fn places(kind: &Kind) -> Option<(&'static [&'static str], Vec<Point>)> {
    let Origin::Injected(errors) = kind.origin else {
        return None;
    };
    let left_out =
        |point: &Point| *point == Point::Alloc && LEFT_OUT.iter().any(|error| errors == [*error]);
    let points: Vec<Point> = kind
        .points
        .iter()
        .copied()
        .filter(|point| POINTS.contains(point) && !left_out(point))
        .collect();
    let is_made = kind.ends_nothing()
        && !kind.needs_company()
        && !points.is_empty()
        && !errors.iter().any(|error| OF_THE_LEDGER.contains(error));
    is_made.then_some((errors, points))
}

#[cfg(test)]
mod tests {
    use vmsrs_campaign::kind;

    use super::*;

    #[test]
    fn what_is_left_out_is_not_made_at_allocations() {
        for (errors, points) in kind::common().filter_map(places) {
            if LEFT_OUT.iter().any(|error| errors == [*error]) {
                assert!(!points.contains(&Point::Alloc), "{errors:?}");
            }
        }
    }

    #[test]
    fn most_kinds_are_made() {
        let made = kind::common().filter(|kind| places(kind).is_some()).count();
        assert!(made > 50, "{made}");
    }

    #[test]
    fn copies_are_changed_in_regions_and_domains() {
        let (low, high) = COPIES.split_once('-').unwrap();
        let domains = include_str!("../../../common/vmsrs_server.h");
        let regions = include_str!("../../../memcached/vmsrs_region.c");
        assert!(domains.contains(&format!("DOMAINS_END 0x{high}\n")));
        assert!(regions.contains(&format!("REGIONS_START 0x0{low}\n")));
        let scratch = include_str!("../../../redis/vmsrs_alloc.c");
        assert!(scratch.contains(&format!("START 0x0{low}\n")));
    }
}
