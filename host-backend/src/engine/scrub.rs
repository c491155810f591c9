//! Scrubbing: the order in which sealed pages are checked.

use serde::{Deserialize, Serialize};
use vmsrs_protocol::NONE;

use super::store::Store;

/// Which sealed pages are meant: all, those of an app, or those of a domain.
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
    /// Where a pass over these pages begins.
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

/// Frames of at most `limit` sealed pages from a position on, and where the next ones are, if there
/// are more. Looks at no more than `limit` domains.
pub(crate) fn next_frames(
    store: &Store,
    scope: Scope,
    mut position: Position,
    limit: u32,
) -> (Vec<u32>, Option<Position>) {
    let mut frames = Vec::new();
    let mut domains = 0;
    while let Some(app) = store.apps.get(position.app as usize) {
        if !scope.has(position) {
            return (frames, None);
        }
        if frames.len() >= limit as usize || domains == limit {
            return (frames, Some(position));
        }
        if !app.has_domain(position.domain) {
            position = Position {
                app: position.app + 1,
                ..Position::default()
            };
            continue;
        }
        domains += 1;
        let room = limit as usize - frames.len();
        let mut pages = app.pages_from(position.domain, position.page);
        frames.extend(pages.by_ref().take(room).map(|entry| entry.frame));
        match pages.next().map_or(NONE, |entry| entry.page) {
            NONE => {
                position.domain += 1;
                position.page = 0;
            }
            page => position.page = page,
        }
    }
    (frames, None)
}
