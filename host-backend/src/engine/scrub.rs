//! Scrubbing: the order in which sealed pages are checked.

use serde::{Deserialize, Serialize};
use vmsrs_protocol::NONE;

use super::store::Store;

/// Which sealed pages are in scope: all, those of an app, or those of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The app, or all of them.
    pub app: Option<u32>,
    /// The domain of that app, or all of them.
    pub domain: Option<u32>,
}

/// The page that is checked next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its app.
    pub app: u32,
    /// Its domain.
    pub domain: u32,
    /// The page; there may be none of this number.
    pub page: u32,
}

/// What checks have found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubCounts {
    /// Sealed pages that were checked.
    pub checked: u64,
    /// Pages whose content was wrong and was taken from the mirror.
    pub repaired: u64,
    /// Copies of the mirror that were missing or wrong and were made from their page.
    pub mirrored: u64,
    /// Pages whose content is lost, those included that were known before.
    pub damaged: u64,
}

impl ScrubCounts {
    /// Adds what others have found.
    pub fn add(&mut self, other: Self) {
        self.checked += other.checked;
        self.repaired += other.repaired;
        self.mirrored += other.mirrored;
        self.damaged += other.damaged;
    }
}

impl Scope {
    /// Where a pass over these pages starts.
    pub fn start(self) -> Position {
        Position {
            app: self.app.unwrap_or(0),
            domain: self.domain.unwrap_or(0),
            page: 0,
        }
    }

    fn has(self, position: Position) -> bool {
        self.app.is_none_or(|app| app == position.app)
            && self.domain.is_none_or(|domain| domain == position.domain)
    }
}

/// What one call has checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubTurn {
    /// What was found.
    pub found: ScrubCounts,
    /// The work that it was, in sealed pages: looking for them counts too.
    pub looked: u64,
    /// Where the next pages are, if there are more.
    pub next: Option<Position>,
}

/// To look at so many places for pages without a sealed one, or at so many domains, counts as a sealed
/// page: one that is checked costs that much at least. So a domain with much room and few pages takes
/// its share of the checks' rate too.
const PLACES_A_PAGE: u64 = 64;

/// Sealed frames from a position on, and where to go on.
pub(crate) struct Found {
    pub(crate) frames: Vec<u32>,
    /// As [`ScrubTurn::looked`], at most 1 above the limit.
    pub(crate) looked: u64,
    pub(crate) next: Option<Position>,
}

/// Sealed frames from a position on, as many as are found with the work of `limit` sealed pages.
pub(crate) fn next_frames(
    store: &Store,
    scope: Scope,
    mut position: Position,
    limit: u32,
) -> Found {
    let budget = u64::from(limit.max(1)) * PLACES_A_PAGE;
    let mut frames = Vec::new();
    let mut spent = 0;
    let next = loop {
        let Some(app) = store.apps.get(position.app as usize) else {
            break None;
        };
        if !scope.has(position) {
            break None;
        }
        if spent >= budget {
            break Some(position);
        }
        spent += 1;
        if position.domain >= app.domains() {
            position = Position {
                app: position.app + 1,
                ..Position::default()
            };
            continue;
        }
        let mut rest = None;
        for place in app.places_from(position.domain, position.page) {
            if spent >= budget {
                rest = Some(place.page);
                break;
            }
            spent += match place.frame {
                NONE => 1,
                frame => {
                    frames.push(frame);
                    PLACES_A_PAGE
                }
            };
        }
        if let Some(page) = rest {
            position.page = page;
            break Some(position);
        }
        position.domain += 1;
        position.page = 0;
    };
    Found {
        frames,
        looked: spent.div_ceil(PLACES_A_PAGE),
        next,
    }
}
