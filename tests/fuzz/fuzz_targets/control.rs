//! Control messages of a hostile driver, whose guest changes the pool all the time.
//!
//! The input is a sequence of messages, each preceded by its 16-bit length. Every pool frame has another
//! content each time it is read. After every message the reply must fit into the room given for it; only
//! frames that hold nothing else may have been overwritten; and what a frame holds as a page's version must
//! be what was read once, as its checksum says.
#![no_main]

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmsrs_host::engine::{
    Engine, EngineConfig, FrameState, Memory, NotCopied, Page, PoolCopy, Position, Scope,
    Unreadable, handle_message,
};
use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

const FRAMES: u32 = 256;

/// Pool and vault, with a number for the content of each vault frame.
struct Numbers {
    pool_frames: u32,
    vault: Vec<u64>,
    /// Pool frames that were copied since the last message.
    copied: Vec<u32>,
    /// Vault frames that were written since the last message.
    written: Vec<u32>,
    /// The content of the pool frame that is read next.
    next: Cell<u64>,
}

impl Numbers {
    fn new(config: &EngineConfig) -> Self {
        Self {
            pool_frames: config.pool_frames,
            vault: vec![0; config.vault_frames as usize],
            copied: Vec::new(),
            written: Vec::new(),
            next: Cell::new(1),
        }
    }

    /// What is in a pool frame at this moment. One in 64 reads fails.
    fn pool(&self, frame: u32) -> Result<u64, Unreadable> {
        assert!(frame < self.pool_frames);
        let content = self.next.get();
        self.next.set(content + 1);
        match content % 64 {
            0 => Err(Unreadable {
                frame,
                source: io::ErrorKind::Other.into(),
            }),
            _ => Ok(content),
        }
    }

    fn write(&mut self, frame: u32, content: u64) {
        assert_ne!(frame, ZERO_FRAME);
        self.vault[frame as usize] = content;
        self.written.push(frame);
    }
}

fn page(number: u64) -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    page[..8].copy_from_slice(&number.to_le_bytes());
    page
}

impl Memory for Numbers {
    fn seal(&mut self, copy: PoolCopy) -> Result<u64, NotCopied> {
        self.copied.push(copy.pool_frame);
        let content = self.pool(copy.pool_frame);
        self.write(copy.vault_frame, *content.as_ref().unwrap_or(&u64::MAX));
        content.map_err(NotCopied::Pool)
    }

    fn read_pool(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        *content = page(self.pool(frame)?);
        Ok(())
    }

    fn read_vault(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        *content = page(self.vault[frame as usize]);
        Ok(())
    }

    fn checksum(&self, frame: u32) -> Result<u64, Unreadable> {
        Ok(self.vault[frame as usize])
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        self.write(to, self.vault[from as usize]);
        Ok(())
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        self.write(frame, from.map_or(0, |from| self.vault[from as usize]));
        Ok(())
    }
}

/// The states of all frames.
fn states(engine: &Engine) -> Vec<Option<FrameState>> {
    let frames = engine.device_config().vault_frames;
    (0..frames).map(|frame| engine.frame_state(frame)).collect()
}

fuzz_target!(|input: &[u8]| {
    let config = EngineConfig::for_frames(FRAMES);
    let mut engine = Engine::new(config).expect("valid limits");
    let mut memory = Numbers::new(&config);
    let mut rest = input;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        rest = after;
        let room = length % 1024;
        let before = states(&engine);
        let reply = handle_message(&mut engine, &mut memory, Duration::ZERO, message, room);
        assert!(reply.bytes.len() <= room);
        for frame in memory.written.drain(..) {
            let state = before[frame as usize];
            assert!(
                !matches!(state, Some(FrameState::Sealed | FrameState::Staged)),
                "frame {frame} was {state:?} and was overwritten"
            );
        }
        let copies = memory.copied.len();
        memory.copied.sort_unstable();
        memory.copied.dedup();
        assert_eq!(memory.copied.len(), copies, "a pool frame was read twice");
        memory.copied.clear();
        let wipe = |frame: u32| {
            memory.vault[frame as usize] = 0;
            Ok::<_, Infallible>(())
        };
        let Ok(()) = engine.cleanse(4, wipe);
    }
    let all = Scope::default();
    let turn = engine.scrub(Duration::ZERO, all, Position::default(), u32::MAX, &mut memory);
    assert_eq!(turn.found.repaired, 0);
});
