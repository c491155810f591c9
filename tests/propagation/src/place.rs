//! The word to corrupt: a random one in a region of the server's memory.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use crate::server::Program;
use crate::tracee::Tracee;

/// A region of the server's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Region {
    /// Used blocks of the heap with their headers, except for the buffers of connections.
    Heap,
    /// Free blocks of the heap; if there are none, the memory after the last block.
    FreeHeap,
    /// The program's writable data.
    Globals,
    /// Words in the C library's writable data that are not zero.
    Library,
    /// Words in the frames of a thread that are not zero.
    Stack,
}

impl Region {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Heap,
        Self::FreeHeap,
        Self::Globals,
        Self::Library,
        Self::Stack,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap, in use",
            Self::FreeHeap => "heap, free",
            Self::Globals => "globals",
            Self::Library => "C library",
            Self::Stack => "stack",
        }
    }
}

/// What is corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Any word of a region.
    Any(Region),
    /// The first word of a variable of the program.
    Variable(&'static str),
}

impl Target {
    /// Its region.
    pub fn region(self) -> Region {
        match self {
            Self::Any(region) => region,
            Self::Variable(_) => Region::Globals,
        }
    }
}

/// How a word is corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// One bit flips.
    Bit,
    /// Any other value.
    Word,
    /// The value of a neighbouring word, like a wrong copy.
    Neighbour,
}

/// A mapping of the server.
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    path: String,
}

fn mappings(process: libc::pid_t) -> Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?;
        Some(Mapping {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            writable: rights.contains('w'),
            path: words.nth(3).unwrap_or_default().to_owned(),
        })
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// The address at which the program's file begins.
///
/// # Errors
///
/// When the server has gone.
pub fn base(tracee: &Tracee, program: &Program) -> Result<u64> {
    let path = program.path().canonicalize()?;
    let maps = mappings(tracee.process())?;
    let first = maps.iter().find(|map| map.path == path.to_string_lossy());
    Ok(first.context("the server has no program")?.start)
}

/// A word of the target; `thread` is stopped, and its stack is used.
///
/// # Errors
///
/// When the target has no suitable word.
pub fn choose(
    rng: &mut impl Rng,
    tracee: &Tracee,
    program: &Program,
    target: Target,
    thread: libc::pid_t,
) -> Result<u64> {
    if let Target::Variable(name) = target {
        let symbol = program
            .symbols
            .data()
            .iter()
            .find(|symbol| symbol.name == name);
        let symbol = symbol.with_context(|| format!("the program has no {name}"))?;
        return Ok((base(tracee, program)? + symbol.address) & !7);
    }
    let region = target.region();
    let maps = mappings(tracee.process())?;
    let word = |rng: &mut _, start: u64, end: u64| {
        start + 8 * Rng::random_range(rng, 0..(end - start) / 8)
    };
    match region {
        Region::Heap | Region::FreeHeap => {
            let blocks = heap(tracee)?;
            let used = region == Region::Heap;
            let end = blocks.last().context("the heap is empty")?.end + 8;
            let blocks: Vec<_> = blocks
                .into_iter()
                .filter(|block| {
                    let size = block.end - block.start + 8;
                    block.used == used && size != THREAD_CACHE && size < SESSION
                })
                .collect();
            if blocks.is_empty() && !used {
                return Ok(word(rng, end, end + NEXT));
            }
            let block = blocks
                .choose_weighted(rng, |block| block.end - block.start)
                .context("the heap has no such block")?;
            Ok(word(rng, block.start, block.end))
        }
        Region::Stack => {
            // glibc puts thread-local storage above a thread's stack.
            let registers = tracee.registers(thread)?;
            let (pointer, end) = (registers.rsp & !7, registers.fs_base & !7);
            ensure!(pointer < end, "the thread has no stack");
            filled(rng, tracee, pointer, end.min(pointer + STACK_USED))
        }
        Region::Globals => {
            let data = program.symbols.data();
            let symbol = data
                .choose_weighted(rng, |symbol| symbol.size)
                .context("the program has no data")?;
            let start = base(tracee, program)? + symbol.address;
            Ok(word(
                rng,
                start & !7,
                (start + symbol.size).next_multiple_of(8),
            ))
        }
        Region::Library => {
            let map = maps
                .iter()
                .find(|map| map.writable && map.path.contains("libc.so"))
                .context("the C library has no data")?;
            filled(rng, tracee, map.start, map.end)
        }
    }
}

/// A non-zero word of a range: most of a stack or of a library's data is not in use.
fn filled(rng: &mut impl Rng, tracee: &Tracee, start: u64, end: u64) -> Result<u64> {
    // A thread's stack or a library's data: a few pages.
    let mut bytes = vec![0; (end - start) as usize];
    tracee.read(start, &mut bytes)?;
    let words: Vec<u64> = (start..)
        .step_by(8)
        .zip(bytes.chunks_exact(8))
        .filter(|(_, word)| word.iter().any(|&byte| byte != 0))
        .map(|(address, _)| address)
        .collect();
    words.choose(rng).copied().context("there is nothing")
}

/// The part of a stack that counts, from the stack pointer.
const STACK_USED: u64 = 4096;

/// Size of the block in which glibc keeps a thread's cache of free blocks.
const THREAD_CACHE: u64 = 0x290;

/// Bytes after the last block that the heap will allocate next.
const NEXT: u64 = 1024;

/// Blocks from this size on are the buffers of sessions, which the kernel fills and empties.
const SESSION: u64 = 0x10000;

/// A block of glibc's heap, header included.
#[derive(Debug)]
pub struct Block {
    /// Its size word.
    pub start: u64,
    /// The end of its last byte.
    pub end: u64,
    /// Whether the program uses it.
    pub used: bool,
}

/// The blocks of the heap.
///
/// # Errors
///
/// When the heap is damaged.
pub fn heap(tracee: &Tracee) -> Result<Vec<Block>> {
    let maps = mappings(tracee.process())?;
    let heap = maps.iter().find(|map| map.path == "[heap]");
    let heap = heap.context("the server has no heap")?;
    blocks(tracee, heap.start, heap.end)
}

/// Walks glibc's heap: each block has its size in front, with a bit that says whether the block
/// before is in use. Blocks in a thread's cache of free ones count as in use there; those have the
/// cache's key in their second word, a random number that is the same for the whole process.
fn blocks(tracee: &Tracee, start: u64, end: u64) -> Result<Vec<Block>> {
    const PREVIOUS_IN_USE: u64 = 1;
    let mut blocks: Vec<Block> = Vec::new();
    let mut place = start;
    while place + 16 < end {
        let size = tracee.word(place + 8)?;
        if size & PREVIOUS_IN_USE == 0
            && let Some(block) = blocks.last_mut()
        {
            block.used = false;
        }
        let length = size & !7;
        ensure!(
            length >= 16 && length <= end - place,
            "the heap cannot be walked"
        );
        blocks.push(Block {
            start: place + 8,
            end: place + length,
            used: true,
        });
        place += length;
    }
    // The last one is what the heap has not given out yet.
    blocks.pop();
    let mut keys = HashMap::new();
    for block in blocks.iter().filter(|block| block.end - block.start >= 24) {
        let word = tracee.word(block.start + 16)?;
        let text = word.to_le_bytes().iter().all(|byte| byte.is_ascii());
        if word >> 48 != 0 && !text {
            *keys.entry(word).or_insert(0) += 1;
        }
    }
    if let Some((key, _)) = keys.into_iter().max_by_key(|&(_, count)| count) {
        for block in blocks
            .iter_mut()
            .filter(|block| block.end - block.start >= 24)
        {
            block.used &= tracee.word(block.start + 16)? != key;
        }
    }
    Ok(blocks)
}

/// A value to corrupt a word with, different from its own.
pub fn corrupt(rng: &mut impl Rng, damage: Damage, value: u64, neighbour: u64) -> u64 {
    match damage {
        Damage::Neighbour if neighbour != value => neighbour,
        Damage::Word => loop {
            let other = rng.random();
            if other != value {
                return other;
            }
        },
        _ => value ^ 1 << rng.random_range(0..64),
    }
}
