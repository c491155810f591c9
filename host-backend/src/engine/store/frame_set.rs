//! A set of frames from which runs are taken: one bit a frame, summarised by blocks of 64.

use vmsrs_protocol::FrameRun;

use crate::engine::runs::frames_of;

const BLOCK: u32 = u64::BITS;

/// A set of frames.
///
/// Runs are taken from where the last one ended as long as that lasts, then from the lowest block
/// of 64 frames that is in the set as a whole, and from fragments (lowest first) when there is no
/// such block. So a stream of small takes gives neighbouring frames, and fragments get time to grow
/// together again before they are used: few long runs keep changes of protection cheap.
pub(crate) struct FrameSet {
    /// One bit a frame.
    blocks: Vec<u64>,
    /// One bit a block: some frame of it is in the set.
    some: Vec<u64>,
    /// One bit a block: all its frames are in the set.
    whole: Vec<u64>,
    count: u32,
    /// End of the run that was taken last.
    cursor: u32,
}

impl FrameSet {
    /// An empty set of frames below `frames`.
    pub(crate) fn new(frames: u32) -> Self {
        let blocks = frames.div_ceil(BLOCK) as usize;
        let summary = blocks.div_ceil(BLOCK as usize);
        Self {
            blocks: vec![0; blocks],
            some: vec![0; summary],
            whole: vec![0; summary],
            count: 0,
            cursor: 0,
        }
    }

    /// Number of frames in the set.
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    pub(crate) fn contains(&self, frame: u32) -> bool {
        self.blocks
            .get((frame / BLOCK) as usize)
            .is_some_and(|block| block >> (frame % BLOCK) & 1 == 1)
    }

    /// Adds a frame, which must be below the set's limit; one that is there already stays.
    pub(crate) fn insert(&mut self, frame: u32) {
        let index = (frame / BLOCK) as usize;
        let bit = 1 << (frame % BLOCK);
        if self.blocks[index] & bit == 0 {
            self.blocks[index] |= bit;
            self.count += 1;
            self.summarise(index);
        }
    }

    pub(crate) fn insert_run(&mut self, run: FrameRun) {
        frames_of(run).for_each(|frame| self.insert(frame));
    }

    /// Takes up to `count` frames out, in at most `max_runs` runs.
    pub(crate) fn take(&mut self, count: u32, max_runs: usize) -> Vec<FrameRun> {
        let mut runs: Vec<FrameRun> = Vec::new();
        let mut wanted = count;
        // The set only shrinks meanwhile, so neither search has to start again from the bottom.
        let (mut whole_from, mut some_from) = (0, 0);
        while wanted > 0 {
            let start = if self.contains(self.cursor) {
                self.cursor
            } else if let Some(block) = lowest(&self.whole, &mut whole_from) {
                block * BLOCK
            } else if let Some(block) = lowest(&self.some, &mut some_from) {
                block * BLOCK + self.blocks[block as usize].trailing_zeros()
            } else {
                break;
            };
            let continues = runs
                .last()
                .is_some_and(|run| run.start + run.count == start);
            if !continues && runs.len() == max_runs {
                break;
            }
            let taken = self.remove_from(start, wanted);
            wanted -= taken;
            self.cursor = start + taken;
            match runs.last_mut() {
                Some(run) if continues => run.count += taken,
                _ => runs.push(FrameRun {
                    start,
                    count: taken,
                }),
            }
        }
        runs
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        (self.blocks.capacity() + self.some.capacity() + self.whole.capacity()) * size_of::<u64>()
    }

    /// Removes the frames of the set from `start` on, until the first that is not in it, at most
    /// `limit`; returns their number.
    fn remove_from(&mut self, start: u32, limit: u32) -> u32 {
        let mut taken = 0;
        while taken < limit {
            let frame = start + taken;
            let index = (frame / BLOCK) as usize;
            let Some(block) = self.blocks.get_mut(index) else {
                break;
            };
            let offset = frame % BLOCK;
            let length = (*block >> offset).trailing_ones().min(limit - taken);
            if length == 0 {
                break;
            }
            *block &= !((u64::MAX >> (BLOCK - length)) << offset);
            taken += length;
            self.summarise(index);
            if offset + length < BLOCK {
                break;
            }
        }
        self.count -= taken;
        taken
    }

    /// Brings the summaries of a block up to date.
    fn summarise(&mut self, index: usize) {
        let (word, bit) = (index / BLOCK as usize, 1 << (index % BLOCK as usize));
        let block = self.blocks[index];
        for (summary, holds) in [
            (&mut self.some, block != 0),
            (&mut self.whole, block == u64::MAX),
        ] {
            if holds {
                summary[word] |= bit;
            } else {
                summary[word] &= !bit;
            }
        }
    }
}

/// The lowest block in a summary. `from` is the word to start with, moved up to the one found.
fn lowest(summary: &[u64], from: &mut usize) -> Option<u32> {
    let skipped = summary[*from..].iter().position(|&word| word != 0)?;
    *from += skipped;
    // There are fewer than 2^26 blocks.
    Some(*from as u32 * BLOCK + summary[*from].trailing_zeros())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn full(frames: u32) -> FrameSet {
        let mut set = FrameSet::new(frames);
        (0..frames).for_each(|frame| set.insert(frame));
        set
    }

    fn run(start: u32, count: u32) -> FrameRun {
        FrameRun { start, count }
    }

    #[test]
    fn small_takes_give_neighbouring_frames() {
        let mut set = full(1000);
        assert_eq!(set.take(5, 64), [run(0, 5)]);
        assert_eq!(set.take(5, 64), [run(5, 5)]);
        assert_eq!(set.take(300, 64), [run(10, 300)]);
        assert_eq!(set.len(), 690);
    }

    #[test]
    fn whole_blocks_go_before_fragments_and_both_lowest_first() {
        let mut set = FrameSet::new(512);
        for frame in [1, 3, 70].into_iter().chain(128..256).chain(320..384) {
            set.insert(frame);
        }
        assert_eq!(set.take(128 + 64, 8), [run(128, 128), run(320, 64)]);
        assert_eq!(set.take(9, 2), [run(1, 1), run(3, 1)]);
        assert_eq!(set.take(9, 2), [run(70, 1)]);
        assert_eq!(set.take(9, 2), []);
    }

    #[test]
    fn odd_sized_set_yields_all_its_frames() {
        let mut set = full(100);
        assert_eq!(set.take(u32::MAX, 1), [run(0, 100)]);
        assert_eq!(set.len(), 0);
    }

    proptest! {
        #[test]
        fn takes_give_every_frame_once_and_no_other(
            steps in prop::collection::vec((0u32..300, 1u32..40, 1usize..6, any::<bool>()), 1..80)
        ) {
            let mut set = FrameSet::new(300);
            let mut model = BTreeSet::new();
            for (frame, count, max_runs, insert) in steps {
                if insert {
                    for frame in frame..(frame + count).min(300) {
                        set.insert(frame);
                        model.insert(frame);
                    }
                } else {
                    let runs = set.take(count, max_runs);
                    prop_assert!(runs.len() <= max_runs);
                    let taken: Vec<u32> = runs.iter().copied().flat_map(frames_of).collect();
                    prop_assert!(taken.len() <= count as usize);
                    prop_assert!(!taken.is_empty() || model.is_empty());
                    for frame in taken {
                        prop_assert!(model.remove(&frame));
                    }
                }
                prop_assert_eq!(set.len() as usize, model.len());
            }
            let rest: Vec<u32> = set.take(300, 300).into_iter().flat_map(frames_of).collect();
            prop_assert_eq!(rest.iter().copied().collect::<BTreeSet<_>>(), model);
        }
    }
}
