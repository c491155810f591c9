//! The cleanser's thread: wipes retired frames in the background.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::NAME;
use crate::engine_handle::{EngineHandle, Stopping};
use crate::sandbox::{self, Role};

/// Frames wiped at a time, so that a message of the driver does not wait long for the engine.
const BATCH: u32 = 16;

/// A frame that was retired so long ago is wiped at the next look, which comes as long after. Seals use
/// retired frames first, and a batch comes every 50 ms: what a busy guest retires need not be wiped.
const PAUSE: Duration = Duration::from_millis(100);

/// Time before frames that could not be wiped are tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Cleanser {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Cleanser {
    pub(super) fn start(handle: EngineHandle) -> io::Result<Self> {
        let worker = handle.clone();
        let thread = thread::Builder::new()
            .name("vmsrs-cleanser".into())
            .spawn(move || {
                sandbox::confine(Role::Background);
                let Stopping = cleanse(&worker);
            })?;
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }
}

impl Drop for Cleanser {
    fn drop(&mut self) {
        self.handle.stop_background();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("{NAME}: the cleanser's thread panicked");
        }
    }
}

/// Wipes what is retired and not used again. A frame that cannot be wiped (the host has no other memory for
/// it) stays retired, so that its old content stays unreachable, and does not delay others; it is tried
/// again.
fn cleanse(handle: &EngineHandle) -> Stopping {
    let mut is_left = false;
    let mut tried = Instant::now();
    let mut unused = 0;
    loop {
        if unused == 0 {
            let waited = handle
                .wait_for_retired(is_left.then_some(RETRY))
                .and_then(|()| handle.pause_cleanser(PAUSE));
            if let Err(stopping) = waited {
                return stopping;
            }
            if is_left && tried.elapsed() >= RETRY {
                tried = Instant::now();
                handle.retry_unwiped();
            }
            unused = handle.take_unused();
        }
        let batch = BATCH.min(unused);
        unused -= batch;
        let was_left = is_left;
        let (result, left) = match handle.cleanse(batch) {
            Ok(outcome) => outcome,
            Err(stopping) => return stopping,
        };
        is_left = left;
        match result {
            // Said once, until all are clean again.
            Err(error) if !was_left => {
                tried = Instant::now();
                log::error!(
                    "{NAME}: {error}: frames that cannot be wiped stay retired and are retried every {} s",
                    RETRY.as_secs()
                );
            }
            Ok(()) if was_left && !is_left => {
                log::info!("{NAME}: all frames that could not be wiped have been wiped");
            }
            _ => {}
        }
        // Lets others that wait for the engine have it.
        thread::yield_now();
    }
}
