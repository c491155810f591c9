//! Where the units of an app's address range are.
//!
//! A unit that is in an extent has an owner, and gets a place in the table of units when the first page of it is committed. Rows
//! of [`ROW`] units are kept apart, so that neither a large extent nor a large gap takes time or memory by its size: a row that
//! belongs to one domain as a whole, or to none, is one word.

/// Units in a row.
const ROW: u32 = 1024;

/// In place of the place of a unit that has none: the owner, or [`NO_OWNER`].
const UNPLACED: u32 = 1 << 31;

/// A number that is no domain's.
const NO_OWNER: u32 = UNPLACED - 1;

/// A unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is in no extent.
    Gap,
    /// It is a domain's, and no page of it was committed.
    Owned(u32),
    /// Where it is in the table of units.
    At(u32),
}

impl Place {
    fn word(self) -> u32 {
        match self {
            Self::Gap => UNPLACED | NO_OWNER,
            Self::Owned(domain) => UNPLACED | domain,
            Self::At(place) => place,
        }
    }

    fn of(word: u32) -> Self {
        match (word & UNPLACED, word & !UNPLACED) {
            (0, place) => Self::At(place),
            (_, NO_OWNER) => Self::Gap,
            (_, domain) => Self::Owned(domain),
        }
    }
}

/// Some units that follow each other.
enum Row {
    /// All are like this one.
    Same(Place),
    /// The words of units; those after them are gaps.
    Each(Vec<u32>),
}

/// The units of an app.
#[derive(Default)]
pub(super) struct Places {
    rows: Vec<Row>,
    /// Units up to the end of the last extent.
    len: u32,
    /// Words that rows have memory for.
    capacity: usize,
}

/// The part of a row that a range of units has: the row, and from where to where.
fn parts(mut start: u32, end: u32) -> impl Iterator<Item = (usize, u32, u32)> {
    std::iter::from_fn(move || {
        let (row, from) = (start / ROW, start % ROW);
        let to = ROW.min(from + (end - start));
        start = row * ROW + to;
        (from < to).then_some((row as usize, from, to))
    })
}

impl Places {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    pub(super) fn get(&self, unit: u32) -> Place {
        match self.rows.get((unit / ROW) as usize) {
            Some(Row::Each(words)) => {
                let word = words.get((unit % ROW) as usize);
                word.map_or(Place::Gap, |&word| Place::of(word))
            }
            Some(Row::Same(place)) => *place,
            None => Place::Gap,
        }
    }

    pub(super) fn has_owner(&self, unit: u32) -> bool {
        self.get(unit) != Place::Gap
    }

    /// Says of a unit that has an owner where it is.
    pub(super) fn set(&mut self, unit: u32, place: u32) {
        let word = Place::At(place).word();
        self.words(unit / ROW, unit % ROW + 1)[(unit % ROW) as usize] = word;
    }

    /// The words of a row, at least `count`.
    fn words(&mut self, row: u32, count: u32) -> &mut Vec<u32> {
        let row = &mut self.rows[row as usize];
        if let Row::Same(place) = *row {
            let count = if place == Place::Gap { 0 } else { ROW };
            *row = Row::Each(vec![place.word(); count as usize]);
            self.capacity += count as usize;
        }
        let Row::Each(words) = row else {
            unreachable!("the row was made one of words");
        };
        let more = (count as usize).saturating_sub(words.len());
        self.capacity -= words.capacity();
        super::grow(words, more);
        words.resize(words.len() + more, Place::Gap.word());
        self.capacity += words.capacity();
        words
    }

    /// Gives the units from `start` to `end`, which are gaps, to a domain.
    pub(super) fn give(&mut self, start: u32, end: u32, domain: u32) {
        let rows = end.div_ceil(ROW) as usize;
        if self.rows.len() < rows {
            let more = rows - self.rows.len();
            super::grow(&mut self.rows, more);
            self.rows.resize_with(rows, || Row::Same(Place::Gap));
        }
        self.len = self.len.max(end);
        self.fill(start, end, Place::Owned(domain));
    }

    /// Makes gaps of the units from `start` to `end`.
    pub(super) fn take_away(&mut self, start: u32, end: u32) {
        self.fill(start, end, Place::Gap);
        for row in start / ROW..end.div_ceil(ROW) {
            let Row::Each(words) = &mut self.rows[row as usize] else {
                continue;
            };
            if words.iter().all(|&word| word == Place::Gap.word()) {
                self.capacity -= words.capacity();
                self.rows[row as usize] = Row::Same(Place::Gap);
            }
        }
    }

    fn fill(&mut self, start: u32, end: u32, place: Place) {
        for (row, from, to) in parts(start, end) {
            if to - from == ROW {
                let before = std::mem::replace(&mut self.rows[row], Row::Same(place));
                if let Row::Each(words) = before {
                    self.capacity -= words.capacity();
                }
                continue;
            }
            let words = self.words(row as u32, to);
            words[from as usize..to as usize].fill(place.word());
        }
    }

    /// All units from `start` on are gaps.
    pub(super) fn truncate(&mut self, start: u32) {
        self.len = start;
        self.rows.truncate(start.div_ceil(ROW) as usize);
    }

    /// The units from `start` to `end` that have a place, and that.
    pub(super) fn placed(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> {
        parts(start, end).flat_map(move |(row, from, to)| {
            let words = match self.rows.get(row) {
                Some(Row::Each(words)) => {
                    let len = words.len();
                    &words[(from as usize).min(len)..(to as usize).min(len)]
                }
                _ => &[],
            };
            let first = row as u32 * ROW + from;
            (first..)
                .zip(words)
                .filter_map(|(unit, &word)| match Place::of(word) {
                    Place::At(place) => Some((unit, place)),
                    _ => None,
                })
        })
    }

    /// Bytes of host memory in use.
    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>() + self.capacity * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNITS: u32 = 4 * ROW;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn units_are_as_they_were_given(
            steps in prop::collection::vec((0u8..3, 0..UNITS, prop_oneof![1..5u32, 1..3 * ROW], 0..9u32), 1..60)
        ) {
            let mut places = Places::default();
            let mut model = vec![Place::Gap; UNITS as usize];
            for (step, start, count, number) in steps {
                let end = (start + count).min(UNITS);
                let range = start as usize..end as usize;
                match step {
                    0 if model[range.clone()].iter().all(|&place| place == Place::Gap) => {
                        places.give(start, end, number);
                        model[range].fill(Place::Owned(number));
                    }
                    1 if model[range.clone()].iter().all(|&place| place != Place::Gap) => {
                        places.take_away(start, end);
                        model[range].fill(Place::Gap);
                    }
                    _ if model[start as usize] != Place::Gap => {
                        places.set(start, number);
                        model[start as usize] = Place::At(number);
                    }
                    _ => {}
                }
                for (unit, &place) in (0..).zip(&model) {
                    assert_eq!(places.get(unit), place, "{unit}");
                }
                let placed = (0..).zip(&model).filter_map(|(unit, &place)| match place {
                    Place::At(place) => Some((unit, place)),
                    _ => None,
                });
                let placed = placed.filter(|(unit, _)| (start..end).contains(unit));
                assert!(places.placed(start, end).eq(placed));
                let capacity: usize = places.rows.iter().map(|row| match row {
                    Row::Same(_) => 0,
                    Row::Each(words) => words.capacity(),
                }).sum();
                assert_eq!(places.capacity, capacity);
            }
            places.take_away(0, places.len());
            assert_eq!(places.capacity, 0);
            places.truncate(0);
            assert_eq!(places.bytes(), places.rows.capacity() * size_of::<Row>());
        }
    }

    #[test]
    fn neither_large_extent_nor_large_gap_takes_memory_by_its_size() {
        let mut places = Places::default();
        places.give(0, 1 << 26, 7);
        assert!(places.bytes() <= (1 << 26) / ROW as usize * 40);
        assert_eq!(places.get(12_345_678), Place::Owned(7));
        places.set(12_345_678, 3);
        assert_eq!(places.get(12_345_678), Place::At(3));
        assert_eq!(places.get(12_345_679), Place::Owned(7));
        assert!(places.placed(0, 1 << 26).eq([(12_345_678, 3)]));
        assert_eq!(places.capacity, ROW as usize);
    }
}
