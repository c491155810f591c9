//! The heap against a model: blocks do not overlap and keep their content.

mod common;

use common::{app, domain, success};
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

/// Pages of memory that are there of a range.
fn resident(block: NonNull<u8>, size: usize) -> usize {
    let start = block.as_ptr() as usize & !0xfff;
    let length = block.as_ptr() as usize + size - start;
    let mut pages = vec![0u8; length.div_ceil(4096)];
    // SAFETY: memory of the domain, and a byte for each page.
    let outcome = unsafe { libc::mincore(start as *mut _, length, pages.as_mut_ptr()) };
    assert_eq!(outcome, 0);
    pages.iter().filter(|&&page| page & 1 != 0).count()
}

/// What the huge blocks of tests have: more than any table of a level of a heap's bitmaps stands for.
const HUGE: usize = 2 << 30;

/// Pages that are few for such a block: the kernel may give 512 where one is touched.
const FEW: usize = 1 << 15;

/// Places in a huge block, far from each other.
fn places(size: usize) -> impl Iterator<Item = usize> {
    (0..size).step_by(size / 7).chain([size - 1])
}

#[test]
fn huge_block_costs_the_pages_that_are_written() {
    let domain = domain();
    let block = success(domain, |_| domain.allocate_zeroed(HUGE, 64).unwrap());
    assert!(resident(block, HUGE) < FEW);
    run_with_whole_audit(domain, |_| {
        for place in places(HUGE) {
            // SAFETY: a place in the block.
            let byte = unsafe { block.add(place).as_mut() };
            assert_eq!(std::mem::replace(byte, 7), 0);
        }
    })
    .unwrap();
    // It moves, since nothing says that there is room after it.
    let large = success(domain, |_| {
        domain.allocate(100, 16).unwrap();
        // SAFETY: not used afterwards.
        unsafe { domain.reallocate(block, 2 * HUGE) }.unwrap()
    });
    let written = |block: NonNull<u8>| {
        // SAFETY: places in the block.
        places(HUGE).all(|place| unsafe { block.add(place).read() } == 7)
    };
    assert!(block != large && written(large));
    assert!(resident(large, 2 * HUGE) < FEW);
    // SAFETY: the places of the block that the old one did not have.
    assert!(places(2 * HUGE).all(|place| place < HUGE || unsafe { large.add(place).read() } == 0));
    run_with_whole_audit(domain, |_| {
        // In its place.
        // SAFETY: not used afterwards.
        let small = unsafe { domain.reallocate(large, HUGE + 5) }.unwrap();
        assert_eq!(small, large);
        // SAFETY: as above.
        let again = unsafe { domain.reallocate(small, 2 * HUGE) }.unwrap();
        assert_eq!(again, large);
        assert!(written(large));
        // SAFETY: as above.
        unsafe { domain.deallocate(large) }.unwrap();
    })
    .unwrap();
    // What is freed is used again, and is zero if that is asked for.
    run_with_whole_audit(domain, |_| {
        let block = domain.allocate_zeroed(HUGE, 16).unwrap();
        // SAFETY: places in the block.
        assert!(places(HUGE).all(|place| unsafe { block.add(place).read() } == 0));
        assert!(domain.allocate(100, 16).is_ok());
    })
    .unwrap();
}

#[test]
fn damage_around_a_huge_block_is_found() {
    type Error = fn(&'static Domain, NonNull<u8>);
    let errors: [(Kind, Error); 5] = [
        (Kind::RedZone, |_, block| write(block, HUGE)),
        (Kind::HeapCorrupt, |_, block| {
            // SAFETY: within the domain; the damage is the error under test.
            write(unsafe { block.sub(16) }, 9);
        }),
        (Kind::ForeignFree, |domain, block| {
            // SAFETY: the error under test.
            let _ = unsafe { domain.deallocate(block.add(HUGE / 2)) };
        }),
        (Kind::DoubleFree, |domain, block| {
            for _ in 0..2 {
                // SAFETY: the error under test.
                let _ = unsafe { domain.deallocate(block) };
            }
        }),
        (Kind::UseAfterFree, |domain, block| {
            // SAFETY: the error under test.
            let _ = unsafe { domain.deallocate(block) };
            write(block, 1000);
        }),
    ];
    for (kind, error) in errors {
        let domain = domain();
        let block = success(domain, |_| domain.allocate(HUGE, 16).unwrap());
        let failure = failed(run_with_whole_audit(domain, |_| error(domain, block)));
        assert_eq!(failure.kind, kind, "{failure}");
    }
}

#[derive(Clone, Debug)]
struct Sparse {
    size: usize,
    /// Changes a block instead of taking one: which, and whether it is freed.
    of: Option<(usize, bool)>,
}

fn sparse_steps() -> impl Strategy<Value = Vec<Sparse>> {
    let size = prop_oneof![3 => 0usize..3000, 2 => 60_000usize..9 << 20, 2 => 0usize..1 << 29];
    let step = (size, prop::option::of(any::<(usize, bool)>()));
    let step = step.prop_map(|(size, of)| Sparse { size, of });
    proptest::collection::vec(step, 1..40)
}

/// What a test writes into a block of that size: numbers at its beginning and end, and on either side of its middle.
fn numbers(address: usize, size: usize) -> Vec<(*mut u64, u64)> {
    let places = match size {
        0..8 => vec![],
        8..20_000 => vec![0],
        _ => vec![0, size / 2 - 4096, size / 2, size - 8],
    };
    let number = |place: usize| ((address + place) as *mut u64, place as u64 / 5 + 1);
    places.into_iter().map(number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn huge_blocks_keep_what_they_have(steps in sparse_steps()) {
        let domain = domain();
        let mut blocks: BTreeMap<usize, usize> = BTreeMap::new();
        for steps in steps.chunks(5) {
            run_with_whole_audit(domain, |_| {
                for step in steps {
                    let picked = step.of.filter(|_| !blocks.is_empty());
                    let picked = picked.map(|(which, free)| (*blocks.keys().nth(which % blocks.len()).unwrap(), free));
                    let old = picked.map(|(address, _)| blocks.remove(&address).unwrap());
                    let pointer = |address: usize| NonNull::new(address as *mut u8).unwrap();
                    let block = match picked {
                        Some((address, true)) => {
                            // SAFETY: used no more.
                            unsafe { domain.deallocate(pointer(address)) }.unwrap();
                            continue;
                        }
                        // SAFETY: used no more.
                        Some((address, false)) => unsafe { domain.reallocate(pointer(address), step.size) }.unwrap(),
                        None => domain.allocate_zeroed(step.size, 16).unwrap(),
                    };
                    let address = block.as_ptr() as usize;
                    let end = address + step.size;
                    assert!(blocks.iter().all(|(&other, &size)| end <= other || other + size <= address));
                    for (place, _) in numbers(address, step.size) {
                        // SAFETY: in the block.
                        let found = unsafe { place.read_unaligned() };
                        assert!(old.is_some() || found == 0);
                    }
                    let kept = old.map_or(0, |old| old.min(step.size));
                    for (place, number) in numbers(address, old.unwrap_or(0)) {
                        // SAFETY: in the block.
                        assert!(place as usize + 8 > address + kept || unsafe { place.read_unaligned() } == number);
                    }
                    for (place, number) in numbers(address, step.size) {
                        // SAFETY: in the block.
                        unsafe { place.write_unaligned(number) };
                    }
                    blocks.insert(address, step.size);
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn domain_grows_to_the_addresses_of_its_app_and_then_fails() {
    app();
    // SAFETY: the requests lend nothing to other threads.
    let app = unsafe { vmsrs::App::open("all addresses") }.unwrap();
    let domain = app.domain("all").unwrap();
    let mut total = 0usize;
    success(domain, |_| {
        let mut block = 1 << 38;
        while block >= 1 << 20 {
            match domain.allocate(block, 16) {
                Ok(_) => total += block,
                Err(_) => block /= 2,
            }
        }
    });
    assert!(total > 1000 << 30, "{total}");
    run_with_whole_audit(domain, |_| domain.allocate(100, 16).unwrap()).unwrap();
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
