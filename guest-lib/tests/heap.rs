//! The heap against a model: blocks do not overlap and keep their content.

mod common;

use common::{domain, success};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ptr::NonNull;
use vmsrs::{Audit, CHUNK_OVERHEAD, Domain, Failure, Kind, Options, Request, RunError};

#[derive(Clone, Debug)]
enum Step {
    Allocate { size: usize, alignment: u32 },
    Free { which: usize },
    Resize { which: usize, size: usize },
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![8 => 0usize..300, 2 => 0usize..20_000, 1 => 0usize..300_000];
    let step = prop_oneof![
        4 => (size.clone(), 0u32..=12).prop_map(|(size, alignment)| Step::Allocate { size, alignment }),
        3 => any::<usize>().prop_map(|which| Step::Free { which }),
        2 => (any::<usize>(), size).prop_map(|(which, size)| Step::Resize { which, size }),
        1 => Just(Step::Commit),
    ];
    proptest::collection::vec(step, 0..300)
}

struct Model {
    domain: &'static Domain,
    /// Size and fill byte of each block, by address.
    blocks: BTreeMap<usize, (usize, u8)>,
    next: u8,
}

impl Model {
    fn pick(&self, which: usize) -> Option<usize> {
        let count = self.blocks.len();
        (count > 0).then(|| *self.blocks.keys().nth(which % count).unwrap())
    }

    fn check(&self, address: usize) {
        let (size, byte) = self.blocks[&address];
        // SAFETY: an allocated block of that size.
        let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size) };
        assert!(bytes.iter().all(|&found| found == byte));
    }

    fn fill(&mut self, block: NonNull<u8>, size: usize) {
        let address = block.as_ptr() as usize;
        self.next = self.next.wrapping_add(1);
        // SAFETY: an allocated block of that size.
        unsafe { block.write_bytes(self.next, size) };
        if let Some((&below, &(length, _))) = self.blocks.range(..=address).next_back() {
            assert!(below + length <= address);
        }
        if let Some((&above, _)) = self.blocks.range(address..).next() {
            assert!(address + size <= above);
        }
        self.blocks.insert(address, (size, self.next));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Allocate { size, alignment } => {
                let alignment = 1 << alignment;
                let block = self.domain.allocate(size, alignment).unwrap();
                assert!((block.as_ptr() as usize).is_multiple_of(alignment.max(16)));
                self.fill(block, size);
            }
            Step::Free { which } => {
                if let Some(address) = self.pick(which) {
                    self.check(address);
                    self.blocks.remove(&address);
                    let block = NonNull::new(address as *mut u8).unwrap();
                    // SAFETY: allocated, and not used afterwards.
                    unsafe { self.domain.deallocate(block) }.unwrap();
                }
            }
            Step::Resize { which, size } => {
                if let Some(address) = self.pick(which) {
                    let (old, byte) = self.blocks[&address];
                    self.blocks.remove(&address);
                    let block = NonNull::new(address as *mut u8).unwrap();
                    // SAFETY: allocated, and not used afterwards.
                    let block = unsafe { self.domain.reallocate(block, size) }.unwrap();
                    // SAFETY: an allocated block of at least that size.
                    let kept = unsafe { std::slice::from_raw_parts(block.as_ptr(), old.min(size)) };
                    assert!(kept.iter().all(|&found| found == byte));
                    self.fill(block, size);
                }
            }
            Step::Commit => {}
        }
    }
}

/// Runs a request whose audit checks the whole domain.
fn run_with_whole_audit<T>(
    domain: &'static Domain,
    f: impl FnOnce(&Request) -> T,
) -> Result<T, RunError<Infallible>> {
    let options = Options {
        audit: Audit::Whole,
        ..Options::default()
    };
    domain.run_with(&options, |request| Ok(f(request)))
}

/// The failure of a request that must fail.
fn failed<T>(outcome: Result<T, RunError<Infallible>>) -> Box<Failure> {
    match outcome {
        Err(RunError::Failed(failure)) => failure,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the damage was not detected"),
    }
}

fn blocks(domain: &'static Domain, count: usize, size: usize) -> Vec<NonNull<u8>> {
    let block = |_| domain.allocate(size, 16).unwrap();
    success(domain, |_| (0..count).map(block).collect::<Vec<_>>())
}

/// Frees every other block.
fn free_alternate(domain: &'static Domain, blocks: &[NonNull<u8>]) {
    success(domain, |_| {
        for &block in blocks.iter().step_by(2) {
            // SAFETY: used afterwards only to do damage.
            unsafe { domain.deallocate(block) }.unwrap();
        }
    });
}

fn write(block: NonNull<u8>, offset: usize) {
    // SAFETY: within the domain; the damage is the error under test.
    unsafe { block.as_ptr().add(offset).write_volatile(0x41) };
}

#[test]
fn write_to_earlier_freed_block_is_detected_at_commit() {
    // Damage to the links, and to the poison.
    for offset in [0, 8, 16, 40, 95] {
        let domain = domain();
        let blocks = blocks(domain, 9, 96);
        free_alternate(domain, &blocks);
        let failure = failed(run_with_whole_audit(domain, |_| write(blocks[4], offset)));
        assert_eq!(failure.kind, Kind::UseAfterFree, "{offset}: {failure}");
    }
}

#[test]
fn write_to_freed_block_is_detected_at_reuse() {
    for offset in [0, 8, 16, 40] {
        let domain = domain();
        let blocks = blocks(domain, 999, 96);
        free_alternate(domain, &blocks);
        let failure = failed(domain.run(|_| {
            write(blocks[998], offset);
            for _ in 0..500 {
                domain.allocate(96, 16).unwrap();
            }
            Ok(())
        }));
        assert_eq!(failure.kind, Kind::UseAfterFree, "{offset}: {failure}");
    }
}

#[test]
fn whole_audit_finds_damage_anywhere_in_domain() {
    let domain = domain();
    let blocks = blocks(domain, 999, 96);
    let failure = failed(run_with_whole_audit(domain, |_| write(blocks[500], 96)));
    assert_eq!(failure.kind, Kind::RedZone);
}

#[test]
fn cyclic_free_list_is_detected_before_use() {
    let domain = domain();
    let blocks = blocks(domain, 99, 96);
    free_alternate(domain, &blocks);
    let failure = failed(domain.run(|_| {
        // The next link of one block is copied to others: a link is valid only in its own place.
        // SAFETY: within the domain; the damage is the error under test.
        unsafe {
            let link = blocks[40].cast::<u64>().as_ptr();
            blocks[50]
                .cast::<u64>()
                .as_ptr()
                .write_volatile(link.read());
            blocks[96]
                .cast::<u64>()
                .as_ptr()
                .write_volatile(link.read());
        }
        for _ in 0..60 {
            domain.allocate(96, 16).unwrap();
        }
        Ok(())
    }));
    assert_eq!(failure.kind, Kind::UseAfterFree);
}

/// Kinds of failures by which damage to a heap may show.
const KINDS: [Kind; 5] = [
    Kind::HeapCorrupt,
    Kind::UseAfterFree,
    Kind::RedZone,
    Kind::DoubleFree,
    Kind::ForeignFree,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever a request has overwritten in its domain, including header and bitmaps, using the heap afterwards
    /// succeeds or fails with one of [`KINDS`]. It never crashes, hangs or writes elsewhere.
    #[test]
    fn damaged_heap_never_crashes_the_allocator(
        steps in steps(),
        places in proptest::collection::vec((0usize..16384, any::<u8>()), 1..20),
        after in steps(),
    ) {
        let domain = domain();
        let mut model = Model { domain, blocks: BTreeMap::new(), next: 0 };
        let first = success(domain, |_| {
            let first = domain.allocate(10, 16).unwrap();
            steps.iter().for_each(|step| model.step(step));
            first.as_ptr() as usize
        });
        // The first block lies in the domain's first page.
        let base = first & !0xfff;
        let live = |address: usize| {
            let block = model.blocks.range(..=address).next_back();
            block.is_some_and(|(&start, &(size, _))| address < start + size)
        };
        let outcome = run_with_whole_audit(domain, |_| {
            for &(offset, value) in &places {
                // Content of blocks is not part of the heap.
                if !live(base + offset) {
                    // SAFETY: in the domain's first extent; the damage is the error under test.
                    unsafe { ((base + offset) as *mut u8).write_volatile(value) };
                }
            }
            let mut blocks: Vec<_> = model.blocks.keys().copied().collect();
            for step in &after {
                match *step {
                    Step::Allocate { size, alignment } => {
                        let _ = domain.allocate(size, 1 << alignment);
                    }
                    Step::Free { which } if !blocks.is_empty() => {
                        let block = blocks.swap_remove(which % blocks.len());
                        // SAFETY: not used afterwards.
                        let _ = unsafe { domain.deallocate(NonNull::new(block as *mut u8).unwrap()) };
                    }
                    _ => {}
                }
            }
            // The heap has not written to allocated blocks, nor given them out again.
            for &block in &blocks {
                model.check(block);
            }
        });
        match outcome {
            Ok(()) => {}
            Err(RunError::Failed(failure)) => prop_assert!(KINDS.contains(&failure.kind), "{failure}"),
            Err(error) => panic!("{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn blocks_are_aligned_disjoint_and_keep_their_bytes(steps in steps()) {
        let mut model = Model { domain: domain(), blocks: BTreeMap::new(), next: 0 };
        let mut steps = &steps[..];
        while !steps.is_empty() {
            let end = steps.iter().position(|step| matches!(step, Step::Commit));
            let (request, rest) = steps.split_at(end.map_or(steps.len(), |end| end + 1));
            run_with_whole_audit(model.domain, |_| {
                for step in request {
                    model.step(step);
                }
            })
            .unwrap();
            steps = rest;
        }
        success(model.domain, |_| {
            for &address in model.blocks.keys() {
                model.check(address);
            }
        });
    }
}

#[test]
fn freed_memory_is_reused() {
    let domain = domain();
    let mut addresses = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        let block = success(domain, |_| {
            let block = domain.allocate(1000, 16).unwrap();
            // SAFETY: not used.
            unsafe { domain.deallocate(block) }.unwrap();
            block.as_ptr() as usize
        });
        addresses.insert(block);
    }
    assert!(addresses.len() < 10);
}

#[test]
fn domain_grows_to_its_limit_and_then_fails() {
    let domain = domain();
    let block = 1 << 20;
    let total = success(domain, |_| {
        let mut total = 0usize;
        while domain.allocate(block, 16).is_ok() {
            total += block;
        }
        total
    });
    assert!(total > 300 << 20, "{total}");
    success(domain, |_| domain.allocate(100, 16).unwrap());
}

#[test]
fn usable_size_is_what_was_asked_for() {
    let domain = domain();
    let outside = NonNull::from(&domain).cast();
    assert!(matches!(
        vmsrs::usable_size(outside),
        Err(vmsrs::Error::NotInRequest)
    ));
    success(domain, |_| {
        for size in [0, 1, 15, 16, 100, 4096, 100_000] {
            let block = domain.allocate(size, 16).unwrap();
            assert_eq!(vmsrs::usable_size(block).unwrap(), size);
        }
        assert!(matches!(
            vmsrs::usable_size(outside),
            Err(vmsrs::Error::NotHeld)
        ));
    });
    let outcome = domain.run(|_| {
        let block = domain.allocate(100, 16)?;
        // SAFETY: live, and only asked about.
        unsafe { domain.deallocate(block)? };
        vmsrs::usable_size(block)
    });
    assert!(matches!(outcome, Err(RunError::Failed(failure)) if failure.kind == Kind::DoubleFree));
}

/// What a server does with a slab: which chunk it takes, with which part of its bytes, or gives back, but for which.
fn uses() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((any::<usize>(), 0usize..=100), 0..200)
}

/// A slab as its server has it.
struct Slab {
    domain: &'static Domain,
    first: NonNull<u8>,
    chunk_bytes: usize,
    /// Size, fill byte, and whether it is in use, of each chunk.
    chunks: Vec<(usize, u8, bool)>,
}

impl Slab {
    fn chunk(&self, number: usize) -> NonNull<u8> {
        // SAFETY: in the slab.
        unsafe { self.first.add(number * self.chunk_bytes) }
    }

    fn check(&self, number: usize) {
        let (size, byte, _) = self.chunks[number];
        // SAFETY: what the server has of a chunk.
        let bytes = unsafe { std::slice::from_raw_parts(self.chunk(number).as_ptr(), size) };
        assert!(bytes.iter().all(|&found| found == byte));
    }

    fn step(&mut self, which: usize, percent: usize) {
        let number = which % self.chunks.len();
        self.check(number);
        let (chunk, (size, byte, in_use)) = (self.chunk(number), self.chunks[number]);
        let new = (self.chunk_bytes - CHUNK_OVERHEAD) * percent / 100;
        if in_use {
            // SAFETY: what is used of it from here on is kept.
            unsafe { self.domain.give_chunk(chunk, new) }.unwrap();
        } else {
            self.domain.take_chunk(chunk, new).unwrap();
            assert_eq!(vmsrs::usable_size(chunk).unwrap(), new);
        }
        // What both have of it stays.
        self.chunks[number] = (size.min(new), byte, !in_use);
        self.check(number);
        let byte = byte.wrapping_add(1);
        // SAFETY: what the server has of it.
        unsafe { chunk.write_bytes(byte, new) };
        self.chunks[number] = (new, byte, !in_use);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No right program is refused, and no wrong byte beside what the server has is missed at the commit.
    #[test]
    fn chunks_keep_their_bytes_and_wrong_bytes_are_found(
        grains in 2usize..70,
        chunks in 1usize..60,
        uses in uses(),
        place in any::<proptest::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let domain = domain();
        let chunk_bytes = grains * 16;
        let first = success(domain, |_| {
            let first = domain.allocate_slab(chunk_bytes, chunks, 0).unwrap();
            domain.allocate(100, 16).unwrap();
            first
        });
        let chunks = vec![(0, 0, false); chunks];
        let mut slab = Slab { domain, first, chunk_bytes, chunks };
        for uses in uses.chunks(20) {
            run_with_whole_audit(domain, |_| {
                uses.iter().for_each(|&(which, percent)| slab.step(which, percent));
            })
            .unwrap();
        }
        let at = place.index(slab.chunks.len() * chunk_bytes - 16);
        let size = slab.chunks[at / chunk_bytes].0;
        let outcome = run_with_whole_audit(domain, |_| {
            // SAFETY: in the slab; the damage is the error under test.
            unsafe { *first.as_ptr().add(at) ^= flip };
        });
        if at % chunk_bytes < size {
            outcome.unwrap();
        } else {
            let kind = failed(outcome).kind;
            prop_assert!(KINDS.contains(&kind), "{kind:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As [`damaged_heap_never_crashes_the_allocator`], with slabs.
    #[test]
    fn damaged_slab_never_crashes_the_allocator(
        grains in 2usize..70,
        chunks in 1usize..60,
        places in proptest::collection::vec((0usize..8192, any::<u8>()), 1..20),
        uses in uses(),
    ) {
        let domain = domain();
        let first = success(domain, |_| domain.allocate_slab(grains * 16, chunks, 8).unwrap());
        let outcome = domain.run(|_| {
            for &(offset, value) in &places {
                let byte = (first.as_ptr() as usize & !0xfff) + offset;
                // SAFETY: in the domain's first extent; the damage is the error under test.
                unsafe { (byte as *mut u8).write_volatile(value) };
            }
            for &(which, percent) in &uses {
                // SAFETY: near the slab; what is no chunk is the error under test.
                let chunk = unsafe { first.add(which % chunks * grains * 16 + which % 3 / 2 * 16) };
                let outcome = match percent % 20 {
                    // SAFETY: not used.
                    0 => unsafe { domain.deallocate_slab(first) },
                    1 => domain.allocate(percent * 10, 16).map(drop),
                    2..11 => domain.take_chunk(chunk, percent / 4),
                    // SAFETY: as above.
                    _ => unsafe { domain.give_chunk(chunk, percent / 4) },
                };
                drop(outcome);
            }
            Ok::<_, Infallible>(())
        });
        match outcome {
            Ok(()) => {}
            Err(RunError::Failed(failure)) => prop_assert!(KINDS.contains(&failure.kind), "{failure}"),
            Err(error) => panic!("{error}"),
        }
    }
}
