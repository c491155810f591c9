//! Runs of frames: single frames gathered into as few changes of protection as possible.

use vmsrs_protocol::FrameRun;

/// Longest gap that [`gather`] bridges.
const BRIDGE_MAX: u32 = 64;

/// The frames of a run.
pub(crate) fn frames_of(run: FrameRun) -> impl Iterator<Item = u32> {
    run.start..run.start + run.count
}

/// Sorts `frames` and gathers neighbours into runs.
///
/// Two runs become one when `bridges` holds for all frames of a short gap between them: to protect
/// frames that are read-only already costs nothing, while each run costs a system call and a
/// separate invalidation of second-level entries.
pub(crate) fn gather(frames: &mut [u32], mut bridges: impl FnMut(u32) -> bool) -> Vec<FrameRun> {
    frames.sort_unstable();
    let mut runs: Vec<FrameRun> = Vec::new();
    for &frame in &*frames {
        if let Some(run) = runs.last_mut() {
            let end = run.start + run.count;
            if frame < end {
                continue;
            }
            if frame - end <= BRIDGE_MAX && (end..frame).all(&mut bridges) {
                run.count = frame - run.start + 1;
                continue;
            }
        }
        runs.push(FrameRun {
            start: frame,
            count: 1,
        });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(runs: &[FrameRun]) -> Vec<(u32, u32)> {
        runs.iter().map(|run| (run.start, run.count)).collect()
    }

    #[test]
    fn neighbours_become_one_run_in_any_order() {
        let runs = gather(&mut [7, 3, 4, 9, 5], |_| false);
        assert_eq!(pairs(&runs), [(3, 3), (7, 1), (9, 1)]);
        assert_eq!(frames_of(runs[0]).collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn a_gap_is_bridged_only_when_every_frame_of_it_allows_it() {
        let runs = gather(&mut [1, 3, 6], |frame| frame != 5);
        assert_eq!(pairs(&runs), [(1, 3), (6, 1)]);
    }
}
