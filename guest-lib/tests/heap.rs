//! The heap against a model: what is allocated stays apart and keeps its bytes.

mod common;

use common::{domain, success};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ptr::NonNull;
use vmsrs::{Audit, Domain, Failure, Kind, Options, Request, RunError};

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
    /// Address → (size, byte that fills it).
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
        // SAFETY: a live block of that size.
        let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size) };
        assert!(bytes.iter().all(|&found| found == byte));
    }

    fn fill(&mut self, block: NonNull<u8>, size: usize) {
        let address = block.as_ptr() as usize;
        self.next = self.next.wrapping_add(1);
        // SAFETY: a live block of that size.
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
                    // SAFETY: live, and forgotten above.
                    unsafe { self.domain.deallocate(block) }.unwrap();
                }
            }
            Step::Resize { which, size } => {
                if let Some(address) = self.pick(which) {
                    let (old, byte) = self.blocks[&address];
                    self.blocks.remove(&address);
                    let block = NonNull::new(address as *mut u8).unwrap();
                    // SAFETY: live, and forgotten above.
                    let block = unsafe { self.domain.reallocate(block, size) }.unwrap();
                    // SAFETY: a live block of at least that size.
                    let kept = unsafe { std::slice::from_raw_parts(block.as_ptr(), old.min(size)) };
                    assert!(kept.iter().all(|&found| found == byte));
                    self.fill(block, size);
                }
            }
            Step::Commit => {}
        }
    }
}

/// Runs a request whose audit looks at the whole domain.
fn whole<T>(
    domain: &'static Domain,
    f: impl FnOnce(&Request) -> T,
) -> Result<T, RunError<Infallible>> {
    let options = Options {
        audit: Audit::Whole,
        ..Options::default()
    };
    domain.run_with(&options, |request| Ok(f(request)))
}

/// The failure of a request that had to fail.
fn failed<T>(outcome: Result<T, RunError<Infallible>>) -> Box<Failure> {
    match outcome {
        Err(RunError::Failed(failure)) => failure,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the damage was not found"),
    }
}

fn blocks(domain: &'static Domain, count: usize, size: usize) -> Vec<NonNull<u8>> {
    let block = |_| domain.allocate(size, 16).unwrap();
    success(domain, |_| (0..count).map(block).collect::<Vec<_>>())
}

/// Frees every second block.
fn free_some(domain: &'static Domain, blocks: &[NonNull<u8>]) {
    success(domain, |_| {
        for &block in blocks.iter().step_by(2) {
            // SAFETY: nobody uses it afterwards but to do damage.
            unsafe { domain.deallocate(block) }.unwrap();
        }
    });
}

fn write(block: NonNull<u8>, offset: usize) {
    // SAFETY: it is not right; that is the test.
    unsafe { block.as_ptr().add(offset).write_volatile(0x41) };
}

#[test]
fn write_to_an_older_freed_block_is_found_at_commit() {
    // In the links, and in the poison.
    for offset in [0, 8, 16, 40, 95] {
        let domain = domain();
        let blocks = blocks(domain, 9, 96);
        free_some(domain, &blocks);
        let failure = failed(whole(domain, |_| write(blocks[4], offset)));
        assert_eq!(failure.kind, Kind::UseAfterFree, "{offset}: {failure}");
    }
}

#[test]
fn use_after_free_in_a_large_domain_is_found_on_reuse() {
    for offset in [0, 8, 16, 40] {
        let domain = domain();
        let blocks = blocks(domain, 999, 96);
        free_some(domain, &blocks);
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
fn whole_audit_finds_distant_damage() {
    let domain = domain();
    let blocks = blocks(domain, 999, 96);
    let failure = failed(whole(domain, |_| write(blocks[500], 96)));
    assert_eq!(failure.kind, Kind::RedZone);
}

#[test]
fn cyclic_free_list_is_found_before_it_is_followed() {
    let domain = domain();
    let blocks = blocks(domain, 99, 96);
    free_some(domain, &blocks);
    let failure = failed(domain.run(|_| {
        // The next link of one is copied to another: each is valid only in its own place.
        // SAFETY: it is not right; that is the test.
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

/// What damage to a heap may look like, when it is met.
const KINDS: [Kind; 5] = [
    Kind::HeapCorrupt,
    Kind::UseAfterFree,
    Kind::RedZone,
    Kind::DoubleFree,
    Kind::ForeignFree,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever a request has overwritten in its domain, its header and bitmaps included: using the heap
    /// afterwards ends well or with a failure that says what is wrong. It never crashes, writes
    /// elsewhere, or runs forever, and the audit of the whole domain finds what it should.
    #[test]
    fn damaged_heap_is_detected_and_never_crashes(
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
        let outcome = whole(domain, |_| {
            for &(offset, value) in &places {
                // What users wrote in their blocks is theirs.
                if !live(base + offset) {
                    // SAFETY: the domain's first extent; the damage is the test.
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
                        // SAFETY: nobody uses it afterwards.
                        let _ = unsafe { domain.deallocate(NonNull::new(block as *mut u8).unwrap()) };
                    }
                    _ => {}
                }
            }
            // Whatever the heap has given out or written meanwhile was unused.
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
    fn blocks_are_aligned_apart_and_keep_their_bytes(steps in steps()) {
        let mut model = Model { domain: domain(), blocks: BTreeMap::new(), next: 0 };
        let mut steps = &steps[..];
        while !steps.is_empty() {
            let end = steps.iter().position(|step| matches!(step, Step::Commit));
            let (request, rest) = steps.split_at(end.map_or(steps.len(), |end| end + 1));
            whole(model.domain, |_| {
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
fn memory_that_is_freed_is_used_again() {
    let domain = domain();
    let mut addresses = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        let block = success(domain, |_| {
            let block = domain.allocate(1000, 16).unwrap();
            // SAFETY: nobody uses it.
            unsafe { domain.deallocate(block) }.unwrap();
            block.as_ptr() as usize
        });
        addresses.insert(block);
    }
    assert!(addresses.len() < 10);
}

#[test]
fn a_domain_grows_to_its_limit_and_then_says_so() {
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
