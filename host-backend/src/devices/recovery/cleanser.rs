//! The cleanser's thread: wipes retired frames in the background.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::NAME;
use crate::engine::RetiredFrames;
use crate::engine_handle::{EngineHandle, Stopping};

/// Frames wiped at a time, so that one that is wanted does not wait long for the others.
const BATCH: u32 = 256;

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

/// Wipes what is retired. A frame that cannot be wiped (the host has no other memory for it) stays
/// retired, so that its old content stays unreachable, and does not delay others; it is tried again.
fn cleanse(handle: &EngineHandle) -> Stopping {
    let mut left = RetiredFrames::default();
    let mut tried = Instant::now();
    loop {
        let pause = (!left.is_empty()).then_some(RETRY);
        let mut retired = match handle.wait_for_retired(BATCH, pause) {
            Ok(retired) => retired,
            Err(stopping) => return stopping,
        };
        let quiet = !left.is_empty();
        if tried.elapsed() >= RETRY {
            tried = Instant::now();
            retired.add(std::mem::take(&mut left));
        }
        let mut error = None;
        let (clean, dirty) = retired.wipe_each(|frame| match handle.wipe(frame) {
            Ok(()) => true,
            Err(refused) => {
                error.get_or_insert(refused);
                false
            }
        });
        handle.cleansed(clean);
        left.add(dirty);
        match error {
            // Said once, until all are clean again.
            Some(error) if !quiet => log::error!(
                "{NAME}: {error}: frames that cannot be wiped stay retired and are retried every {} s",
                RETRY.as_secs()
            ),
            None if quiet && left.is_empty() => {
                log::info!("{NAME}: all frames that could not be wiped have been wiped");
            }
            _ => {}
        }
    }
}
