//! The heap against a model: what is allocated stays apart and keeps its bytes.

mod common;

use common::{domain, success};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use vmsrs::Domain;

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn blocks_are_aligned_apart_and_keep_their_bytes(steps in steps()) {
        let mut model = Model { domain: domain(), blocks: BTreeMap::new(), next: 0 };
        let mut steps = &steps[..];
        while !steps.is_empty() {
            let end = steps.iter().position(|step| matches!(step, Step::Commit));
            let (request, rest) = steps.split_at(end.map_or(steps.len(), |end| end + 1));
            success(model.domain, |_| {
                for step in request {
                    model.step(step);
                }
            });
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
