//! The six promises of `docs/design.md`, as far as the engine keeps them: what must be true after
//! every step, whatever the driver and the guest did.
//!
//! That these can fail was tried by hand, with one mistake at a time in the engine:
//!
//! | mistake | caught by |
//! |---|---|
//! | a stale vault frame is accepted | the refusal that must come |
//! | a refused batch keeps its staged frames | the store's own check |
//! | records count before their batch has arrived whole | 1: other versions than those committed |
//! | a reset keeps the records of such a batch | 6: the next batch is refused |
//! | a reset deletes what such a batch would have deleted | 1: pages are missing |
//! | a deleted domain keeps its frames | the store's own check |

use std::collections::BTreeMap;

use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, NONE, ZERO_FRAME};

use super::{CONFIG, World};
use crate::engine::FrameState;

/// What a page holds, by app and page: the frame and its content.
pub(super) type Pages = BTreeMap<(u32, u32), (u32, u64)>;

impl World {
    /// All promises.
    pub(super) fn check(&mut self) {
        self.engine.check_invariants();
        self.recovery_data_is_isolated();
        self.forget_superseded();
        let pages = self.sealed_pages();
        self.user_data_is_consistent(&pages);
        self.commits_are_atomic(&pages);
        self.nothing_is_rolled_back(&pages);
        self.former = pages;
    }

    /// What went wrong in a superseded version does no harm.
    fn forget_superseded(&mut self) {
        let frames = &self.engine.store.frames;
        let pages = &self.pages;
        self.wrong.retain(|&frame, page| {
            let (current, _) = pages[page];
            frame == current || frames.mirror(current) == Some(frame)
        });
        self.lost.retain(|page| frames.is_damaged(pages[page].0));
    }

    /// The pages of all domains, as the engine tells a driver that starts.
    fn sealed_pages(&self) -> Pages {
        let mut found = Pages::new();
        for &(app, domain) in self.extents.keys() {
            let (pages, next) = self.engine.list_pages(app, domain, 0, usize::MAX).unwrap();
            assert_eq!(next, NONE);
            for entry in pages {
                let page = (app, entry.page);
                let committed = self.pages.get(&page).copied();
                let shown = match committed {
                    // Nobody gets to see what is there. The page stands for what it was.
                    Some(committed) if entry.frame == DAMAGED_FRAME => {
                        assert!(self.lost.contains(&page), "{page:?} lost without a reason");
                        committed
                    }
                    // Until the next check.
                    Some(committed) if self.wrong.contains_key(&entry.frame) => committed,
                    _ => (entry.frame, self.memory.content(entry.frame)),
                };
                found.insert(page, shown);
            }
        }
        found
    }

    /// Promise 1, user data consistency: a domain holds exactly what its committed requests wrote,
    /// in the frames that the driver knows.
    fn user_data_is_consistent(&self, found: &Pages) {
        assert_eq!(found, &self.pages);
    }

    /// Promise 2, atomicity: where one page shows a commit, none of the same commit shows an older
    /// version. Contents are numbered in the order of the commits.
    fn commits_are_atomic(&self, found: &Pages) {
        for commit in &self.commits {
            let content = |page| found.get(page).map_or(0, |&(_, content)| content);
            let kept = || commit.iter().filter(|(page, _)| !self.lost.contains(page));
            let shown = kept().any(|(page, written)| content(page) == *written);
            let older = kept().find(|(page, written)| content(page) < *written);
            assert!(!shown || older.is_none(), "half of a commit: {older:?}");
        }
    }

    /// Promise 3, isolation of recovery data: the guest reaches the pool alone. Whatever it writes there
    /// that is not a commit on its way changes nothing that the host keeps; wiped frames stay so.
    fn recovery_data_is_isolated(&mut self) {
        for &frame in &self.pool {
            self.memory.guest_write(frame, u64::MAX);
        }
        for frame in 0..CONFIG.vault_frames {
            if self.engine.frame_state(frame) == Some(FrameState::Free) {
                let content = self.memory.content(frame);
                assert_eq!(content, 0, "frame {frame} is free and not wiped");
            }
        }
        assert_eq!(self.memory.content(ZERO_FRAME), 0);
    }

    /// Promise 4, no rollback: no page goes back to a version before, none goes away.
    fn nothing_is_rolled_back(&self, found: &Pages) {
        for (page, &(_, before)) in &self.former {
            let now = found.get(page).map(|&(_, content)| content);
            assert!(
                now.is_some_and(|now| now >= before) || self.lost.contains(page),
                "{page:?} went back from {before} to {now:?}"
            );
        }
    }

    /// Promise 5, any threads: locks are the library's and the driver's (`tests/loom`). The engine's
    /// part is that no number of an earlier boot comes again, so that nothing left from there is
    /// taken for a running request's.
    pub(super) fn numbers_never_come_again(&self, before: &vmsrs_protocol::device::DeviceConfig) {
        let after = self.engine.device_config();
        assert!(after.tag_base > before.tag_base);
        assert!(after.incident_base > before.incident_base);
        assert!(after.incident_base >= self.next_incident);
    }

    /// Promise 6, only the guilty pays: whatever happened, all others can go on: the next batch may be as
    /// long as the pool. Afterwards no frame is lost to the cleanser.
    pub(super) fn everybody_else_can_go_on(&mut self) {
        self.reset();
        self.memory.fails_after = None;
        self.memory.unwritable.fill(false);
        self.engine.retry_unwiped();
        let pages = self.all_pages();
        let records: Vec<SealRecord> = (0..CONFIG.pool_frames)
            .zip(pages)
            .map(|(pool_frame, (app, domain, page))| SealRecord {
                app,
                domain,
                page,
                pool_frame,
                vault_frame: self.sealed_frame((app, page)),
                reserved: 0,
            })
            .collect();
        for record in &records {
            self.memory
                .guest_write(record.pool_frame, self.next_content);
        }
        let outcome = self.send(&records, SEAL_LAST);
        assert_eq!(outcome.refusal, None);
        for (record, frame) in records.iter().zip(outcome.frames) {
            let page = (record.app, record.page);
            self.pages.insert(page, (frame, self.next_content));
            self.lost.remove(&page);
        }
        self.cleanse(u32::MAX);
        for frame in 0..CONFIG.vault_frames {
            let state = self.engine.frame_state(frame);
            assert_ne!(state, Some(FrameState::Retired), "frame {frame} is lost");
        }
    }
}
