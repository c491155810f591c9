//! Requests that take a block and free an older one, as those of most servers do.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;

use anyhow::{Context, Result, anyhow};
use vmsrs::{App, Domain, Error};

use super::meter::{Meter, Watch};
use super::seal;
use crate::sample::{Sample, What};

/// Bytes of a block, and blocks at a time: within a page, and in some pages.
const SHAPES: [(usize, usize); 2] = [(100, 16), (1000, 32)];

const ALIGNMENT: usize = 16;

/// Blocks that are taken and freed in turn.
struct Queue {
    bytes: usize,
    blocks: RefCell<VecDeque<NonNull<u8>>>,
    value: Cell<u8>,
}

impl Queue {
    /// Takes all of them.
    fn new<E>(
        (bytes, count): (usize, usize),
        take: impl Fn(usize) -> Result<NonNull<u8>, E>,
    ) -> Result<Self, E> {
        let blocks = (0..count).map(|_| take(bytes)).collect::<Result<_, E>>()?;
        Ok(Self {
            bytes,
            blocks: RefCell::new(blocks),
            value: Cell::new(0),
        })
    }

    /// Takes a block, writes it, and frees the oldest one.
    fn turn<E>(
        &self,
        take: impl Fn(usize) -> Result<NonNull<u8>, E>,
        free: impl Fn(NonNull<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let block = take(self.bytes)?;
        let value = self.value.get().wrapping_add(1);
        self.value.set(value);
        // SAFETY: the block has so many bytes, and nothing else uses it.
        unsafe { block.write_bytes(value, self.bytes) };
        let mut blocks = self.blocks.borrow_mut();
        blocks.push_back(block);
        let oldest = blocks.pop_front().expect("one was pushed");
        free(oldest)
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGNMENT).expect("a valid layout")
}

/// Measures them, and the same with the C library's allocator.
pub(super) fn measure(meter: &Meter, app: &'static App, rounds: u32) -> Result<()> {
    for shape in SHAPES {
        alone(meter, shape, rounds * 64)?;
        in_requests(meter, app, shape, rounds * 64)?;
    }
    Ok(())
}

/// Measures the rows that a baseline is kept of.
pub(super) fn measure_main(meter: &Meter, app: &'static App, rounds: u32) -> Result<()> {
    for shape in SHAPES {
        in_requests(meter, app, shape, rounds * 64)?;
    }
    Ok(())
}

fn sample((bytes, _): (usize, usize), protected: bool, rounds: u32) -> Sample {
    Sample {
        count: Some(bytes as u32),
        ..Sample::new(What::Blocks, protected, rounds)
    }
}

fn alone(meter: &Meter, shape: (usize, usize), rounds: u32) -> Result<()> {
    let take = |bytes| {
        // SAFETY: not empty.
        NonNull::new(unsafe { alloc(layout(bytes)) }).context("no memory")
    };
    let free = |block: NonNull<u8>| {
        // SAFETY: a block that was taken so, and is used no more.
        unsafe { dealloc(block.as_ptr(), layout(shape.0)) };
        Ok(())
    };
    let queue = Queue::new(shape, take)?;
    meter.phase(rounds, |rounds| {
        let watch = Watch::start();
        for _ in 0..rounds {
            queue.turn(take, free)?;
        }
        Ok(sample(shape, false, rounds).lasted(watch))
    })
}

fn in_requests(meter: &Meter, app: &'static App, shape: (usize, usize), rounds: u32) -> Result<()> {
    let user = app.domain(format!("blocks of {} bytes", shape.0))?;
    let take = |bytes| user.allocate(bytes, ALIGNMENT);
    // SAFETY: a block of the domain that is used no more.
    let free = |block| unsafe { user.deallocate(block) };
    let failed = |error| anyhow!("an ordinary request failed: {error:?}");
    let queue = user.run(|_| Queue::new(shape, take)).map_err(failed)?;
    let turn = |user: &'static Domain| {
        user.run(|_| queue.turn::<Error>(take, free))
            .map_err(failed)
    };
    for _ in 0..64 {
        turn(user)?;
    }
    seal(user)?;
    meter.phase(rounds, |rounds| {
        let watch = Watch::start();
        for _ in 0..rounds {
            turn(user)?;
        }
        let sample = sample(shape, true, rounds).lasted(watch);
        // Sealing is part of the host's work.
        seal(user)?;
        Ok(sample)
    })?;
    // A domain that stays hot is one more to look at when a request fails.
    user.delete()?;
    Ok(())
}
