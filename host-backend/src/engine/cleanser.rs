//! The cleanser: retired frames are wiped and become free again.

use super::store::Store;

/// Wipes up to `frames` retired frames. One that `wipe` refuses stays retired and is set aside, so that it
/// does not delay others. Returns the first error.
pub(crate) fn cleanse<E>(
    store: &mut Store,
    frames: u32,
    mut wipe: impl FnMut(u32) -> Result<(), E>,
) -> Result<(), E> {
    let mut result = Ok(());
    for _ in 0..frames {
        let Some(frame) = store.frames.pop_retired() else {
            break;
        };
        match wipe(frame) {
            Ok(()) => store.frames.free(frame),
            Err(error) => {
                store.unwiped.push(frame);
                if result.is_ok() {
                    result = Err(error);
                }
            }
        }
    }
    result
}

/// Lets the frames that could not be wiped be tried again.
pub(crate) fn retry(store: &mut Store) {
    for frame in std::mem::take(&mut store.unwiped) {
        store.frames.push_retired(frame);
    }
}
