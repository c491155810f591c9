//! Control messages of a hostile driver.
//!
//! The input is a sequence of messages, each preceded by its 16-bit length. After every message the
//! frames that the guest can write must be exactly those that the engine has granted, and the reply
//! must fit into the room given for it.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmsrs_host::engine::{
    Content, Engine, EngineConfig, FrameState, Inspect, Page, Protection, ProtectionError,
    Unreadable, checksum, handle_message,
};
use vmsrs_protocol::{FrameRun, PAGE_SIZE};

const FRAMES: u32 = 256;

/// Frame permissions without any memory.
struct Permissions {
    writable: [bool; FRAMES as usize],
}

impl Permissions {
    fn set(&mut self, run: FrameRun, writable: bool) {
        // A run outside of the window panics here, so the fuzzer reports it.
        for frame in run.start..run.start + run.count {
            self.writable[frame as usize] = writable;
        }
    }
}

impl Protection for Permissions {
    fn protect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.set(run, false);
        Ok(())
    }

    fn unprotect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.set(run, true);
        Ok(())
    }
}

impl Inspect for Permissions {
    fn read(&self, frame: u32, content: &mut Page) {
        assert!(frame < FRAMES);
        content.fill(0);
    }
}

impl Content for Permissions {
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable> {
        assert!(frame < FRAMES);
        Ok(checksum(&[0; PAGE_SIZE as usize]))
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        assert!(from < FRAMES && !self.writable[to as usize]);
        Ok(())
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        assert!(from.is_none_or(|from| from < FRAMES) && !self.writable[frame as usize]);
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let config = EngineConfig::for_window(FRAMES);
    let mut engine = Engine::new(config).expect("valid limits for the window");
    let mut permissions = Permissions {
        writable: [false; FRAMES as usize],
    };
    let mut rest = input;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        rest = after;
        let room = length % 1024;
        let reply = handle_message(&mut engine, &mut permissions, Duration::ZERO, message, room);
        assert!(reply.bytes.len() <= room);
        for (frame, &writable) in (0..).zip(&permissions.writable) {
            let granted = engine.frame_state(frame) == Some(FrameState::Granted);
            assert_eq!(writable, granted, "frame {frame}");
        }
        let retired = engine.take_retired(16);
        engine.cleansed(retired);
    }
});
