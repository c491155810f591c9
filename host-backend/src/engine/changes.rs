//! What a request had changed in a page: the dropped draft against the version that stays, in runs
//! of bytes, each with the heap block it lies in or follows. Plain functions over the bytes of pages.

use std::ops::Range;

use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::heap::{BLOCK_HEADER, BlockHeader, GRAIN, RED_ZONE_MIN, State};

/// The content of a page.
pub type Page = [u8; PAGE_SIZE as usize];

/// Equal bytes up to which two changes count as one: a number whose middle byte stays is one change.
const GAP: usize = 8;

/// Bytes that are differing and neighbouring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Offset in the page.
    pub(crate) offset: u16,
    /// The bytes before, and as many after.
    bytes: Box<[u8]>,
    /// The block that starts at or before the change, and nearest to it.
    pub(crate) block: Option<Block>,
}

impl Change {
    pub(crate) fn before(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() / 2]
    }

    pub(crate) fn after(&self) -> &[u8] {
        &self.bytes[self.bytes.len() / 2..]
    }

    /// Bytes of host memory in use.
    pub(crate) fn cost(&self) -> usize {
        // A small allocation costs about as much as its bytes again.
        size_of::<Self>() + 32 + self.bytes.len()
    }
}

/// A block of the library's heap, or a chunk of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// Its state in the version that stays; `None` if there is no such block.
    pub(crate) was: Option<State>,
    /// Its state in the dropped version; `None` if there is no such block, or its header is damaged.
    pub(crate) became: Option<State>,
}

impl Block {
    /// Where it starts: with its header where that is good in the dropped version; a damaged one was
    /// overwritten from the block before it.
    fn begin(&self) -> u64 {
        match self.became {
            Some(_) => self.address.saturating_sub(BLOCK_HEADER as u64),
            None => self.address,
        }
    }
}

/// Words of a page that are compared at once.
const CHUNK: usize = 16;

/// Some of the chunks of a page, a bit each.
type Chunks = u32;

const _: () = assert!(PAGE_SIZE as usize / (CHUNK * WORD) == Chunks::BITS as usize);

/// How two versions of a page differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Where any byte differs.
    chunks: Chunks,
    /// Bytes that differ.
    pub(crate) count: u32,
    /// Where they are, in order: start and end of each run.
    stretches: Vec<(usize, usize)>,
}

impl Differences {
    /// Compares two versions of a page by words.
    pub(crate) fn new(old: &Page, new: &Page) -> Self {
        let mut found = Self {
            chunks: differing(old, new),
            ..Self::default()
        };
        let (old, new) = (chunks(old), chunks(new));
        for number in Numbers(found.chunks) {
            found.add_chunk(number * CHUNK * WORD, &old[number], &new[number]);
        }
        found
    }

    fn add_chunk(&mut self, start: usize, old: &[u8], new: &[u8]) {
        let words = old
            .as_chunks::<WORD>()
            .0
            .iter()
            .zip(new.as_chunks::<WORD>().0);
        for (number, (&old, &new)) in words.enumerate() {
            let mut differing = u64::from_le_bytes(old) ^ u64::from_le_bytes(new);
            let start = start + number * WORD;
            while differing != 0 {
                let from = differing.trailing_zeros() / u8::BITS;
                // Up to the first byte that is zero.
                let rest = differing >> (from * u8::BITS);
                let zero = rest.wrapping_sub(LOW_BITS) & !rest & (LOW_BITS << 7);
                let length = (zero.trailing_zeros() / u8::BITS).min(WORD as u32 - from);
                self.add(start + from as usize, length);
                let end = from + length;
                differing = match end {
                    8.. => 0,
                    end => differing >> (end * u8::BITS) << (end * u8::BITS),
                };
            }
        }
    }

    fn add(&mut self, start: usize, length: u32) {
        self.count += length;
        let end = start + length as usize;
        match self.stretches.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            None => {
                self.stretches.reserve(16);
                self.stretches.push((start, end));
            }
            Some(_) => self.stretches.push((start, end)),
        }
    }

    /// Offset of the first byte that differs.
    pub(crate) fn first(&self) -> Option<u32> {
        // Below the size of a page.
        self.stretches.first().map(|&(start, _)| start as u32)
    }

    /// The differing bytes of the page at `address` as changes, in order, each with the block that it
    /// lies in: a change ends where the next block starts.
    pub(crate) fn changes(&self, address: u64, old: &Page, new: &Page) -> Vec<Change> {
        let (Some(&(first, _)), Some(&(_, end))) = (self.stretches.first(), self.stretches.last())
        else {
            return Vec::new();
        };
        let blocks = blocks_of(address, old, new, self.chunks, first..end);
        let mut later = blocks.iter().copied().peekable();
        let mut runs: Vec<(usize, usize, Option<Block>)> = Vec::with_capacity(self.stretches.len());
        let mut block = None;
        for &(mut start, end) in &self.stretches {
            while start < end {
                let at = address.wrapping_add(start as u64);
                while let Some(next) = later.next_if(|next| next.begin() <= at) {
                    block = Some(next);
                }
                // Blocks are in the order of their addresses, and none begins before `at`.
                let part = later.peek().map_or(end, |next| {
                    let offset = next.begin().wrapping_sub(address);
                    usize::try_from(offset).map_or(end, |offset| offset.min(end))
                });
                match runs.last_mut() {
                    Some((_, last, same)) if start - *last <= GAP && *same == block => *last = part,
                    _ => runs.push((start, part, block)),
                }
                start = part;
            }
        }
        let change = |(from, to, block): (usize, usize, Option<Block>)| Change {
            // Below the size of a page.
            offset: from as u16,
            bytes: [&old[from..to], &new[from..to]].concat().into(),
            block,
        };
        runs.into_iter().map(change).collect()
    }
}

/// The chunks of a page.
fn chunks(page: &Page) -> &[[u8; CHUNK * WORD]] {
    page.as_chunks().0
}

/// The numbers of some chunks, in order.
struct Numbers(Chunks);

impl Iterator for Numbers {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let number = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(number as usize)
    }
}

impl DoubleEndedIterator for Numbers {
    fn next_back(&mut self) -> Option<usize> {
        let number = self.0.checked_ilog2()?;
        self.0 ^= 1 << number;
        Some(number as usize)
    }
}

/// The chunks in which two pages differ.
fn differing(old: &Page, new: &Page) -> Chunks {
    #[target_feature(enable = "avx2")]
    fn wide(old: &Page, new: &Page) -> Chunks {
        generic(old, new)
    }
    #[inline(always)]
    fn generic(old: &Page, new: &Page) -> Chunks {
        let pairs = chunks(old).iter().zip(chunks(new));
        pairs.rev().fold(0, |found, (old, new)| {
            found << 1 | Chunks::from(differ(old, new))
        })
    }
    match is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the instructions.
        true => unsafe { wide(old, new) },
        false => generic(old, new),
    }
}

/// Whether two chunks differ. A comparison of arrays would be a call for each.
#[inline(always)]
fn differ(old: &[u8; CHUNK * WORD], new: &[u8; CHUNK * WORD]) -> bool {
    let words = |chunk| <[u8]>::as_chunks::<WORD>(chunk).0;
    let pairs = words(old).iter().zip(words(new));
    let differing = pairs.fold(0, |all, (&old, &new)| {
        all | (u64::from_ne_bytes(old) ^ u64::from_ne_bytes(new))
    });
    differing != 0
}

/// Those of the first `count` chunks in which a grain may be a header.
fn plausible(page: &Page, count: usize) -> Chunks {
    #[target_feature(enable = "avx2")]
    fn wide(chunks: &[[u8; CHUNK * WORD]]) -> Chunks {
        generic(chunks)
    }
    #[inline(always)]
    fn generic(chunks: &[[u8; CHUNK * WORD]]) -> Chunks {
        chunks.iter().rev().fold(0, |found, chunk| {
            found << 1 | Chunks::from(has_plausible(chunk))
        })
    }
    let chunks = &chunks(page)[..count];
    match is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the instructions.
        true => unsafe { wide(chunks) },
        false => generic(chunks),
    }
}

/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// The lowest bit of each byte of a word.
const LOW_BITS: u64 = u64::MAX / 0xff;

/// Blocks of the two versions of the page at `address`, in order: those that begin in a range of offsets,
/// and before them at least the nearest one. The versions differ in `changed` at most.
fn blocks_of(
    address: u64,
    old: &Page,
    new: &Page,
    changed: Chunks,
    range: Range<usize>,
) -> Vec<Block> {
    let (olds, news) = (grains(old), grains(new));
    let end = range.end.min(LAST_HEADER + 1).div_ceil(GRAIN);
    let count = end.div_ceil(GRAINS);
    let now = plausible(new, count);
    let before = Numbers(changed)
        .take_while(|&number| number < count)
        .filter(|&number| has_plausible(&chunks(old)[number]));
    let either = before.fold(now, |all, number| all | 1 << number);
    let grains_of = |number: usize| number * GRAINS..(number + 1) * GRAINS;
    // What has become of the room before a block, only the last block before it that was made tells.
    let first = Numbers(now)
        .flat_map(grains_of)
        .rev()
        .filter(|&number| (1..=range.start / GRAIN).contains(&number))
        .find(|&number| is_plausible(&news[number]) && made(address, new, number * GRAIN).is_some())
        .unwrap_or(0);
    let mut found = Vec::new();
    let mut taken = 0;
    for number in Numbers(either).flat_map(grains_of) {
        if !(first..end).contains(&number)
            || !is_plausible(&olds[number]) && !is_plausible(&news[number])
        {
            continue;
        }
        let offset = number * GRAIN;
        // At the end of the page the header describes a block that starts in the next one.
        let block = address.wrapping_add((offset + BLOCK_HEADER) as u64);
        let was = header(old, offset).and_then(|header| state(header, block));
        let became = header(new, offset).and_then(|header| state(header, block));
        // A block that was made of free room has the size that it has now, one that became free room
        // that which it had.
        let made = became.filter(|(state, _)| *state != State::Free);
        let Some((_, size)) = made.or(was).or(became) else {
            continue;
        };
        if let Some(header) = header(new, offset).filter(|_| made.is_some()) {
            taken = block.saturating_add(header.room() as u64);
        } else if became.is_none() && block < taken {
            // Its header is not damaged, but part of the block that has its room now.
            continue;
        }
        found.push(Block {
            address: block,
            size,
            was: was.map(|(state, _)| state),
            became: became.map(|(state, _)| state),
        });
    }
    found
}

/// The last block of a page at `address`.
pub(crate) fn last_block_of(address: u64, page: &Page) -> Option<Block> {
    blocks_of(address, page, page, 0, LAST_HEADER..PAGE_SIZE as usize).pop()
}

/// The last block of the two versions of the page at `address`.
pub(crate) fn last_block(address: u64, old: &Page, new: &Page) -> Option<Block> {
    let changed = differing(old, new);
    blocks_of(address, old, new, changed, LAST_HEADER..PAGE_SIZE as usize).pop()
}

/// Offset of the last header in a page.
const LAST_HEADER: usize = PAGE_SIZE as usize - BLOCK_HEADER;

/// The header at an offset, if it is one of a block in use or given back.
fn made(address: u64, page: &Page, offset: usize) -> Option<BlockHeader> {
    let header = header(page, offset)?;
    let block = address.wrapping_add((offset + BLOCK_HEADER) as u64);
    state(header, block)
        .filter(|(state, _)| *state != State::Free)
        .map(|_| header)
}

/// The places in a page where headers can be.
fn grains(page: &Page) -> &[[u8; GRAIN]] {
    page.as_chunks().0
}

/// Grains in a chunk.
const GRAINS: usize = CHUNK * WORD / GRAIN;

/// Whether a grain of a chunk may be a header, all of them at once.
#[inline(always)]
fn has_plausible(chunk: &[u8; CHUNK * WORD]) -> bool {
    let (words, _) = chunk.as_chunks::<WORD>();
    let (pairs, _) = words.as_chunks::<2>();
    let bits = pairs.iter().fold(0, |all, &[check, meta]| {
        let (check, meta) = (u64::from_le_bytes(check), u64::from_le_bytes(meta));
        all | check & meta >> 1 & !meta
    });
    bits & 1 != 0
}

/// Whether a grain may be a header: a look at the bits that all of them have.
fn is_plausible(grain: &[u8; GRAIN]) -> bool {
    const BITS: u128 = 3 << 64 | 1;
    const HEADER: u128 = 2 << 64 | 1;
    u128::from_le_bytes(*grain) & BITS == HEADER
}

fn header(page: &Page, offset: usize) -> Option<BlockHeader> {
    let bytes = page.get(offset..offset + BLOCK_HEADER)?;
    Some(bytemuck::pod_read_unaligned(bytes))
}

fn state(header: BlockHeader, address: u64) -> Option<(State, u64)> {
    let state = header.state(address)?;
    let size = match state {
        // What the server keeps of it is no size to speak of.
        State::Given => header.room().saturating_sub(RED_ZONE_MIN),
        _ => header.size(),
    };
    Some((state, size as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: u64 = 0x1100_0000_2000;

    fn page(bytes: &[(usize, u8)]) -> Page {
        let mut page = [0; PAGE_SIZE as usize];
        for &(offset, byte) in bytes {
            page[offset] = byte;
        }
        page
    }

    fn changes(address: u64, old: &Page, new: &Page) -> Vec<Change> {
        Differences::new(old, new).changes(address, old, new)
    }

    fn count(old: &Page, new: &Page) -> (u32, Option<u32>) {
        let found = Differences::new(old, new);
        (found.count, found.first())
    }

    fn blocks(address: u64, old: &Page, new: &Page) -> Vec<Block> {
        blocks_of(address, old, new, Chunks::MAX, 0..PAGE_SIZE as usize)
    }

    fn put(page: &mut Page, offset: usize, size: usize, state: State) {
        let room = (size + 8).next_multiple_of(GRAIN);
        let header = BlockHeader::new(ADDRESS + offset as u64, size, room, state);
        page[offset - BLOCK_HEADER..offset].copy_from_slice(bytemuck::bytes_of(&header));
    }

    #[test]
    fn neighbouring_changes_are_one_and_distant_ones_are_two() {
        let new = page(&[(10, 1), (18, 2), (28, 3)]);
        let found = changes(ADDRESS, &page(&[]), &new);
        let places: Vec<_> = found
            .iter()
            .map(|change| (change.offset, change.after().len()))
            .collect();
        assert_eq!(places, [(10, 9), (28, 1)]);
        assert_eq!(found[1].after(), [3]);
        assert_eq!(found[1].before(), [0]);
        assert_eq!(count(&page(&[]), &new), (3, Some(10)));
        assert_eq!(count(&new, &new), (0, None));
    }

    #[test]
    fn blocks_of_both_versions_are_found() {
        let mut old = page(&[]);
        put(&mut old, 0x100, 40, State::Live);
        put(&mut old, 0x200, 24, State::Live);
        let mut new = old;
        put(&mut new, 0x100, 40, State::Freed);
        new[0x1f0] ^= 1;
        put(&mut new, 0x400, 8, State::Live);
        put(&mut new, 0x1000, 100, State::Live);
        let found = blocks(ADDRESS, &old, &new);
        let facts: Vec<_> = found
            .iter()
            .map(|block| (block.address - ADDRESS, block.size, block.was, block.became))
            .collect();
        assert_eq!(
            facts,
            [
                (0x100, 40, Some(State::Live), Some(State::Freed)),
                (0x200, 24, Some(State::Live), None),
                (0x400, 8, None, Some(State::Live)),
                (0x1000, 100, None, Some(State::Live)),
            ]
        );
        for offset in [0xef, 0x1ff, 0x200] {
            new[offset] ^= 1;
        }
        let changes = changes(ADDRESS, &old, &new);
        let places: Vec<_> = changes
            .iter()
            .map(|change| (change.offset, change.block))
            .collect();
        // The damaged header of the second one counts as the first, a good header as its own.
        let [first, second, third, fourth] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            places,
            [
                (0xef, None),
                // The lowest byte of its check word is the same for both states.
                (0xf1, Some(first)),
                (0x1f0, Some(first)),
                (0x1ff, Some(first)),
                (0x200, Some(second)),
                (0x3f0, Some(third)),
                (0xff0, Some(fourth)),
            ]
        );
    }

    #[test]
    fn chunks_of_slabs_are_found() {
        let mut old = page(&[]);
        put(&mut old, 0x100, 0, State::Slab);
        put(&mut old, 0x120, 8, State::Taken);
        put(&mut old, 0x140, 8, State::Taken);
        let mut new = old;
        put(&mut new, 0x140, 4, State::Given);
        new[0x127] ^= 1;
        new[0x128] ^= 1;
        new[0x145] ^= 1;
        let block = |offset: u64, was, became| Block {
            address: ADDRESS + offset,
            size: 8,
            was: Some(was),
            became: Some(became),
        };
        let changes = changes(ADDRESS, &old, &new);
        let places: Vec<_> = (changes.iter())
            .map(|change| (change.offset, change.block.unwrap()))
            .collect();
        let taken = block(0x120, State::Taken, State::Taken);
        let given = block(0x140, State::Taken, State::Given);
        assert_eq!(places[0], (0x127, taken));
        assert!(
            places[1..]
                .iter()
                .all(|&(offset, block)| offset >= 0x130 && block == given)
        );
        assert_eq!(places.last(), Some(&(0x145, given)));
    }

    #[test]
    fn block_absorbed_by_a_larger_one_is_not_listed() {
        let mut old = page(&[]);
        put(&mut old, 0x100, 8, State::Live);
        put(&mut old, 0x120, 8, State::Live);
        put(&mut old, 0x200, 8, State::Live);
        let mut new = page(&[]);
        let header = BlockHeader::new(ADDRESS + 0x100, 0x40, 0x50, State::Live);
        new[0xf0..0x100].copy_from_slice(bytemuck::bytes_of(&header));
        let found = blocks(ADDRESS, &old, &new);
        let places: Vec<_> = found.iter().map(|block| block.address - ADDRESS).collect();
        // Nothing took the place of the last one: its header is damaged.
        assert_eq!(places, [0x100, 0x200]);
    }

    #[test]
    fn a_forged_header_with_the_largest_room_is_no_trouble() {
        let address = 0u64.wrapping_sub(PAGE_SIZE.into());
        let mut new = page(&[]);
        let room = ((1 << 36) - 1) * GRAIN;
        let header = BlockHeader::new(address + 16, room - 8, room, State::Live);
        new[..16].copy_from_slice(bytemuck::bytes_of(&header));
        let found = blocks(address, &page(&[]), &new);
        assert_eq!(changes(address, &page(&[]), &new)[0].block, Some(found[0]));
    }

    proptest! {
        #[test]
        fn changes_applied_to_the_old_version_give_the_new_one(
            old in proptest::collection::vec((0..PAGE_SIZE as usize, any::<u8>()), 0..200),
            new in proptest::collection::vec((0..PAGE_SIZE as usize, any::<u8>()), 0..200),
        ) {
            let (mut old, new) = (page(&old), page(&new));
            let mut end = 0;
            for change in changes(ADDRESS, &old, &new) {
                let place = usize::from(change.offset)..usize::from(change.offset) + change.after().len();
                prop_assert!(end == 0 || place.start > end + GAP);
                prop_assert_eq!(change.before(), &old[place.clone()]);
                end = place.end;
                old[place].copy_from_slice(change.after());
            }
            prop_assert_eq!(old, new);
        }

        #[test]
        fn words_tell_the_same_differences_as_bytes(
            ranges in proptest::collection::vec((0..PAGE_SIZE as usize, 0..40usize, 0u8..3), 0..60),
        ) {
            let old = page(&[]);
            let mut new = old;
            for (start, length, byte) in ranges {
                let end = (start + length).min(new.len());
                new[start..end].fill(byte);
            }
            let differing: Vec<u32> = (0u32..)
                .zip(old.iter().zip(&new))
                .filter(|(_, (old, new))| old != new)
                .map(|(offset, _)| offset)
                .collect();
            let expected = (differing.len() as u32, differing.first().copied());
            prop_assert_eq!(count(&old, &new), expected);
        }

        #[test]
        fn chunks_tell_where_headers_may_be(
            grains in proptest::collection::vec((0..256usize, any::<[u64; 2]>()), 0..40),
        ) {
            let mut page = page(&[]);
            for (number, words) in grains {
                page[number * GRAIN..][..GRAIN].copy_from_slice(bytemuck::bytes_of(&words));
            }
            let expected = super::grains(&page).chunks(GRAINS).rev().fold(0, |found, grains| {
                found << 1 | Chunks::from(grains.iter().any(is_plausible))
            });
            prop_assert_eq!(plausible(&page, 32), expected);
            prop_assert_eq!(plausible(&page, 5), expected & 0x1f);
        }

        #[test]
        fn blocks_near_a_change_are_those_of_the_whole_page(
            blocks in proptest::collection::vec((1usize..256, 0usize..300, any::<bool>(), 0u8..3), 0..40),
            writes in proptest::collection::vec((0..PAGE_SIZE as usize, 1..30usize), 1..6),
        ) {
            let mut versions = [page(&[]); 2];
            for (grain, size, is_new, state) in blocks {
                let state = [State::Live, State::Freed, State::Free][usize::from(state)];
                let offset = grain * GRAIN;
                let room = size.next_multiple_of(GRAIN);
                let header = BlockHeader::new(ADDRESS + offset as u64, size, room, state);
                for version in &mut versions[usize::from(is_new)..] {
                    version[offset - BLOCK_HEADER..offset].copy_from_slice(bytemuck::bytes_of(&header));
                }
            }
            let [old, mut new] = versions;
            for (start, length) in writes {
                let end = (start + length).min(new.len());
                new[start..end].iter_mut().for_each(|byte| *byte ^= 1);
            }
            let all = blocks_of(ADDRESS, &old, &new, Chunks::MAX, 0..PAGE_SIZE as usize);
            for change in changes(ADDRESS, &old, &new) {
                let at = ADDRESS + u64::from(change.offset);
                let nearest = all.iter().rev().find(|block| block.begin() <= at);
                prop_assert_eq!(change.block.as_ref(), nearest);
                let end = at + change.after().len() as u64;
                prop_assert!(all.iter().all(|block| block.begin() <= at || block.begin() >= end));
            }
            prop_assert_eq!(last_block(ADDRESS, &old, &new), all.last().copied());
        }
    }
}
