//! The six promises of `docs/design.md`, as far as the engine keeps them: what must be true after
//! every step, whatever the driver and the guest did.
//!
//! That these can fail was tried by hand, with one mistake at a time in the engine:
//!
//! | mistake | caught by |
//! |---|---|
//! | a run of frames is not protected | 3: a frame is writable |
//! | dropped drafts stay writable | 3: a frame is writable |
//! | a frame becomes free before it is wiped | 3: it is not zeros |
//! | a stale old frame is accepted | the refusal that must come |
//! | a refused commit leaves its first records | the store's own check |
//! | records count before their commit has arrived whole | the store's own check |
//! | a reset keeps the records of such a commit | the store's own check |
//! | a refused message is taken back in the wrong order | the store's own check |
//! | a frame is granted twice | the store's own check |
//! | a page is sealed for a domain that it does not belong to | the refusal that must come |
//! | tags start over after a reset | 5 |
//! | superseded frames are forgotten | 6: a frame is lost |

use std::collections::BTreeMap;

use vmsrs_protocol::{DAMAGED_FRAME, NONE, ZERO_FRAME};

use super::{CONFIG, RUNS, World};
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
                    _ => (entry.frame, self.memory.content[entry.frame as usize]),
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
            let shown = commit
                .iter()
                .any(|(page, written)| content(page) == *written);
            let older = commit
                .iter()
                .find(|(page, written)| content(page) < *written);
            assert!(!shown || older.is_none(), "half of a commit: {older:?}");
        }
    }

    /// Promise 3, isolation of recovery data: a guest that runs wild, its kernel included, writes
    /// into every frame that it can. It reaches granted frames alone; sealed versions, evidence and
    /// wiped frames stay as they are.
    fn recovery_data_is_isolated(&mut self) {
        for frame in 0..CONFIG.window_frames {
            let state = self.engine.frame_state(frame);
            let granted = state == Some(FrameState::Granted);
            let writable = self.memory.writable[frame as usize];
            assert!(granted || !writable, "frame {frame} is writable");
            assert!(self.leftover || writable == granted, "frame {frame}");
            assert_eq!(self.engine.is_protected(frame), !granted);
            // But for drafts that are committed and not yet sent: those, only the driver's page
            // tables guard.
            let unsent = self
                .unfinished
                .as_ref()
                .is_some_and(|(records, _)| records.iter().any(|record| record.new_frame == frame));
            if !unsent {
                self.memory.guest_write(frame, u64::MAX);
            }
            let content = self.memory.content[frame as usize];
            if state == Some(FrameState::Evidence) {
                assert_eq!(Some(&content), self.evidence.get(&frame), "frame {frame}");
            }
            if state == Some(FrameState::Free) {
                assert_eq!(content, 0, "frame {frame} is free and not wiped");
            }
        }
        assert_eq!(self.memory.content[ZERO_FRAME as usize], 0);
    }

    /// Promise 4, no rollback: no page goes back to a version before, none goes away.
    fn nothing_is_rolled_back(&self, found: &Pages) {
        for (page, &(_, before)) in &self.former {
            let now = found.get(page).map(|&(_, content)| content);
            // A frame that was left read-only had zeros in it when it was committed.
            assert!(
                now.is_some_and(|now| now >= before || now == 0),
                "{page:?} went back from {before} to {now:?}"
            );
        }
    }

    /// Promise 5, any threads: locks are the library's and the driver's (`tests/loom`). The engine's
    /// part is that no number of an earlier boot comes again, so that nothing left from there is
    /// taken for a running request's.
    pub(super) fn numbers_never_come_again(&self, before: &vmsrs_protocol::device::DeviceConfig) {
        let after = self.engine.device_config();
        assert!(after.tag_base > before.tag_base && after.tag_base >= self.next_tag);
        assert!(after.incident_base > before.incident_base);
        assert!(after.incident_base >= self.next_incident);
    }

    /// Promise 6, only the guilty pays: whatever happened, all others can go on. As soon as the
    /// cleanser has caught up the driver gets its whole pool; that right messages are taken is
    /// checked where the steps send them.
    pub(super) fn everybody_else_can_go_on(&mut self) {
        self.memory.fails_after = None;
        let retired = self.engine.take_retired(u32::MAX);
        self.memory.wipe(&retired);
        self.engine.cleansed(retired);
        for frame in 0..CONFIG.window_frames {
            let state = self.engine.frame_state(frame);
            assert_ne!(state, Some(FrameState::Retired), "frame {frame} is lost");
        }
        loop {
            let runs = self
                .engine
                .grant(CONFIG.pool_frames, RUNS, &mut self.memory)
                .expect("nothing fails any more");
            if runs.is_empty() {
                break;
            }
            self.take_grant(&runs);
        }
        let frames = 0..CONFIG.window_frames;
        let granted = frames.filter(|&frame| !self.engine.is_protected(frame));
        assert_eq!(granted.count(), CONFIG.pool_frames as usize);
    }
}
