//! Which words of a large bitmap are not 0, so that a search need not look at them all.
//!
//! A level has one bit for each word below it: the first level for the words of the bitmap, each further one for those of the
//! level before. The last has [`TOP`] words at most. They lie one after the other.

/// Most words of the last level.
const TOP: usize = 64;

/// Words of a bitmap for which a word of the first level stands.
const STEP: usize = 64;

/// Words that all levels have for a bitmap of `words` words.
pub(super) const fn total(words: usize) -> usize {
    let (mut count, mut total) = (words, 0);
    while count > TOP {
        count = count.div_ceil(STEP);
        total += count;
    }
    total
}

/// The levels of a bitmap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    /// Their first word.
    first: *mut u64,
    /// Words of the bitmap.
    count: usize,
}

impl Sums {
    /// Those of a bitmap of `count` words, more than [`TOP`]: [`total`] words from `first` on, in a domain that the request holds.
    pub(super) const fn new(first: *mut u64, count: usize) -> Self {
        Self { first, count }
    }

    /// The levels, each with its words and the number of these.
    fn levels(self) -> impl Iterator<Item = *mut u64> {
        let (mut level, mut below) = (self.first, self.count);
        std::iter::from_fn(move || {
            let found = level;
            (below > TOP).then(|| {
                below = below.div_ceil(STEP);
                level = level.wrapping_add(below);
                found
            })
        })
    }

    /// Word `place` of the bitmap is not 0 any more.
    #[cold]
    pub(super) fn mark(self, mut place: usize) {
        for level in self.levels() {
            let word = level.wrapping_add(place / STEP);
            // SAFETY: a word of the level, in the domain that the request holds.
            let before = unsafe { word.read() };
            let bit = 1 << (place % STEP);
            if before & bit == 0 {
                // SAFETY: as above.
                unsafe { word.write(before | bit) };
            }
            if before != 0 {
                return;
            }
            place /= STEP;
        }
    }

    /// Word `place` of the bitmap is 0 now.
    #[cold]
    pub(super) fn unmark(self, mut place: usize) {
        for level in self.levels() {
            let word = level.wrapping_add(place / STEP);
            // SAFETY: as in mark().
            let rest = unsafe { word.read() } & !(1 << (place % STEP));
            // SAFETY: as in mark().
            unsafe { word.write(rest) };
            if rest != 0 {
                return;
            }
            place /= STEP;
        }
    }

    /// Whether the levels say that word `place` of the bitmap is not 0.
    pub(super) fn has(self, mut place: usize) -> bool {
        self.levels().all(|level| {
            // SAFETY: as in mark().
            let word = unsafe { level.wrapping_add(place / STEP).read() };
            let bit = word >> (place % STEP) & 1;
            place /= STEP;
            bit != 0
        })
    }

    /// The first word from `from` on that is not 0, by the levels.
    pub(super) fn next(self, from: usize) -> Option<usize> {
        next(self.first, self.count, from)
    }

    /// The last word below `below` that is not 0, by the levels.
    pub(super) fn before(self, below: usize) -> Option<usize> {
        before(self.first, self.count, below)
    }
}

/// The first bit from `from` on that is set in a level of `count` bits, after which the next level lies.
fn next(level: *const u64, count: usize, from: usize) -> Option<usize> {
    if from >= count {
        return None;
    }
    let words = count.div_ceil(STEP);
    // SAFETY: a word of the level, in the domain that the request holds.
    let read = |word: usize| unsafe { level.wrapping_add(word).read() };
    let found = |word: usize, bits: u64| word * STEP + bits.trailing_zeros() as usize;
    let mut word = from / STEP;
    let bits = read(word) >> (from % STEP) << (from % STEP);
    if bits != 0 {
        return Some(found(word, bits));
    }
    loop {
        word += 1;
        if words > TOP {
            word = next(level.wrapping_add(words), words, word)?;
        } else if word >= words {
            return None;
        }
        // Not at once if the next level is wrong.
        let bits = read(word);
        if bits != 0 {
            return Some(found(word, bits));
        }
    }
}

/// The last bit below `below` that is set in a level of `count` bits, after which the next level lies.
fn before(level: *const u64, count: usize, below: usize) -> Option<usize> {
    let last = below.min(count).checked_sub(1)?;
    let words = count.div_ceil(STEP);
    // SAFETY: as in next().
    let read = |word: usize| unsafe { level.wrapping_add(word).read() };
    let found = |word: usize, bits: u64| word * STEP + bits.ilog2() as usize;
    let mut word = last / STEP;
    let bits = read(word) & (u64::MAX >> (STEP - 1 - last % STEP));
    if bits != 0 {
        return Some(found(word, bits));
    }
    loop {
        word = if words > TOP {
            before(level.wrapping_add(words), words, word)?
        } else {
            word.checked_sub(1)?
        };
        let bits = read(word);
        if bits != 0 {
            return Some(found(word, bits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn levels_of_the_largest_bitmap_are_few() {
        // A TiB has this many words of a bit for each 16 bytes.
        let words = 1 << 30;
        assert_eq!(total(words), (1 << 24) + (1 << 18) + (1 << 12) + 64);
        assert_eq!((total(TOP), total(TOP + 1)), (0, 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn marked_words_are_found_from_everywhere(
            count in prop_oneof![65usize..5000, 262_000usize..300_000],
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..60),
            looks in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut words = vec![0u64; total(count)];
            let sums = Sums::new(words.as_mut_ptr(), count);
            let mut marked = BTreeSet::new();
            for (place, is_marked) in places {
                let place = place.index(count);
                if is_marked {
                    sums.mark(place);
                    marked.insert(place);
                } else if marked.remove(&place) {
                    sums.unmark(place);
                }
            }
            let near = marked.iter().flat_map(|&place| [place.saturating_sub(1), place, place + 1]);
            for look in looks.iter().map(|look| look.index(count + 1)).chain(near) {
                prop_assert_eq!(sums.next(look), marked.range(look..).next().copied());
                prop_assert_eq!(sums.before(look), marked.range(..look).next_back().copied());
                prop_assert_eq!(look < count && sums.has(look), marked.contains(&look));
            }
            for place in std::mem::take(&mut marked) {
                sums.unmark(place);
            }
            prop_assert!(words.iter().all(|&word| word == 0));
        }
    }
}
