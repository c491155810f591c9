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

/// Within a page; in some pages; many small ones, of which a request takes several.
const SHAPES: [Shape; 3] = [
    Shape {
        bytes: 100,
        live: 16,
        each: 1,
    },
    Shape {
        bytes: 1000,
        live: 32,
        each: 1,
    },
    Shape {
        bytes: 60,
        live: 500,
        each: 8,
    },
];

/// What requests do with blocks.
#[derive(Clone, Copy)]
struct Shape {
    /// Of a block.
    bytes: usize,
    /// Blocks between two requests.
    live: usize,
    /// Blocks that a request takes, and as many that it frees.
    each: u32,
}

const ALIGNMENT: usize = 16;

/// Blocks that are taken and freed in turn.
struct Queue {
    shape: Shape,
    blocks: RefCell<VecDeque<NonNull<u8>>>,
    value: Cell<u8>,
}

impl Queue {
    /// Takes all of them.
    fn new<E>(shape: Shape, take: impl Fn(usize) -> Result<NonNull<u8>, E>) -> Result<Self, E> {
        let blocks = (0..shape.live).map(|_| take(shape.bytes));
        let blocks = blocks.collect::<Result<_, E>>()?;
        Ok(Self {
            shape,
            blocks: RefCell::new(blocks),
            value: Cell::new(0),
        })
    }

    /// Takes blocks, writes them, and frees the oldest ones.
    fn turn<E>(
        &self,
        take: impl Fn(usize) -> Result<NonNull<u8>, E>,
        free: impl Fn(NonNull<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = self.shape.bytes;
        let value = self.value.get().wrapping_add(1);
        self.value.set(value);
        let mut blocks = self.blocks.borrow_mut();
        for _ in 0..self.shape.each {
            let block = take(bytes)?;
            // SAFETY: the block has so many bytes, and nothing else uses it.
            unsafe { block.write_bytes(value, bytes) };
            blocks.push_back(block);
        }
        for oldest in blocks.drain(..self.shape.each as usize) {
            free(oldest)?;
        }
        Ok(())
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

fn sample(shape: Shape, protected: bool, rounds: u32) -> Sample {
    Sample {
        count: Some(shape.bytes as u32),
        blocks: Some(shape.each),
        ..Sample::new(What::Blocks, protected, rounds)
    }
}

fn alone(meter: &Meter, shape: Shape, rounds: u32) -> Result<()> {
    let take = |bytes| {
        // SAFETY: not empty.
        NonNull::new(unsafe { alloc(layout(bytes)) }).context("no memory")
    };
    let free = |block: NonNull<u8>| {
        // SAFETY: a block that was taken so, and is used no more.
        unsafe { dealloc(block.as_ptr(), layout(shape.bytes)) };
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

fn in_requests(meter: &Meter, app: &'static App, shape: Shape, rounds: u32) -> Result<()> {
    let user = app.domain(format!("blocks of {} bytes", shape.bytes))?;
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
