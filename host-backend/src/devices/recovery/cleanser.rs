//! The cleanser's thread: wipes retired frames while nobody waits for them.

use std::io;
use std::thread::{self, JoinHandle};

use super::NAME;
use super::handle::RecoveryHandle;

/// Frames wiped at a time, so that one that is wanted does not wait long for the others.
pub(super) const BATCH: u32 = 256;

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Cleanser {
    handle: RecoveryHandle,
    thread: Option<JoinHandle<()>>,
}

impl Cleanser {
    pub(super) fn start(handle: RecoveryHandle) -> io::Result<Self> {
        let worker = handle.clone();
        let thread = thread::Builder::new()
            .name("vmsrs-cleanser".into())
            .spawn(move || while worker.cleanse_when_needed() {})?;
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
