//! Changed bytes in words and as hexadecimal digits.

use std::fmt::Write as _;

use crate::engine::{BlockFacts, BlockState, ChangeFacts, RequestFacts};

/// Bytes in a row.
pub(super) const ROW: usize = 16;

/// How far behind a block's end a change is still said to lie behind it: a red zone and a neighbour's
/// header.
const NEAR: u64 = 256;

/// Where a change lies: in, before or behind which block; a phrase.
pub(super) fn place(change: &ChangeFacts) -> String {
    let Some(block) = &change.block else {
        return "before the first block: the heap's own bookkeeping".into();
    };
    let Some(end) = block.address.checked_add(block.size) else {
        return "in no block".into();
    };
    let name = format!(
        "the {} of {} bytes at {:#x}",
        what(block),
        block.size,
        block.address
    );
    if change.address < block.address {
        format!("the header of {name}")
    } else if change.address < end {
        let from = format!("from byte {} of {name} on", change.address - block.address);
        let beyond = (change.address + change.new.len() as u64).saturating_sub(end);
        // The heap itself writes behind a block when it makes one.
        match beyond {
            0 => from,
            _ if block.was.is_none() => from,
            beyond => format!("{from}, and {beyond} bytes behind its end"),
        }
    } else if change.address == end {
        format!("right behind the end of {name}")
    } else if change.address - end < NEAR {
        format!("{} bytes behind the end of {name}", change.address - end)
    } else {
        "in no block: free, or the heap's own bookkeeping".into()
    }
}

/// Behind the end of which block a changed byte lies; a phrase.
pub(super) fn behind(address: u64, request: &RequestFacts) -> Option<String> {
    let changes = || request.drafts.iter().flat_map(|draft| &draft.changes);
    changes().find(|change| {
        let from = address.checked_sub(change.address);
        from.is_some_and(|from| from < change.new.len() as u64)
    })?;
    // A change may go on over blocks that begin behind it.
    let block = changes()
        .filter_map(|change| change.block.as_ref())
        .filter(|block| block.address <= address)
        .max_by_key(|block| block.address)?;
    let bytes = address.checked_sub(block.address.checked_add(block.size)?)?;
    (bytes < NEAR).then(|| {
        let distance = match bytes {
            0 => "right".to_owned(),
            _ => format!("{bytes} bytes"),
        };
        format!(
            "{distance} behind the end of the {} of {} bytes at {:#x}",
            what(block),
            block.size,
            block.address
        )
    })
}

/// A block with what the request had done to it.
fn what(block: &BlockFacts) -> &'static str {
    use BlockState::{Freed, Live};
    match (block.was, block.became) {
        (Some(Live), Some(Live)) => "block",
        (Some(Live), Some(Freed)) => "block (freed by this request)",
        (Some(Live), None) => "block (its header overwritten)",
        (Some(Freed), Some(Live)) | (None, Some(Live)) => "block (allocated by this request)",
        (None, Some(Freed)) => "block (allocated and freed by this request)",
        (Some(Freed), _) => "freed block",
        (None, None) => "former block",
    }
}

/// Bytes as digits and characters, [`ROW`] of them wide.
pub(super) fn row(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x} ");
    }
    let characters: String = bytes
        .iter()
        .map(|&byte| match byte {
            0x20..=0x7e => char::from(byte),
            _ => '.',
        })
        .collect();
    format!("{text:48}|{characters}|")
}

/// The rows of a change, at most `limit`: address, before, after.
pub(super) fn rows(
    change: &ChangeFacts,
    limit: usize,
) -> impl Iterator<Item = (u64, String, String)> + '_ {
    let pairs = change.old.chunks(ROW).zip(change.new.chunks(ROW));
    pairs
        .zip((change.address..).step_by(ROW))
        .take(limit)
        .map(|((old, new), address)| (address, row(old), row(new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(address: u64, was: Option<BlockState>, became: Option<BlockState>) -> ChangeFacts {
        ChangeFacts {
            address,
            old: vec![0; 20],
            new: b"AAAAAAAAAAAAAAAAAAA\n".to_vec(),
            block: Some(BlockFacts {
                address: 0x1000,
                size: 40,
                was,
                became,
            }),
        }
    }

    #[test]
    fn a_change_is_said_to_lie_in_or_behind_its_block() {
        use BlockState::{Freed, Live};
        for (address, was, became, text) in [
            (
                0xff0,
                None,
                Some(Live),
                "the header of the block (allocated by this request)",
            ),
            (
                0x1008,
                Some(Live),
                Some(Live),
                "from byte 8 of the block of 40 bytes at 0x1000 on",
            ),
            (0x1000, Some(Live), Some(Freed), "(freed by this request)"),
            (
                0x1020,
                Some(Live),
                Some(Live),
                ", and 12 bytes behind its end",
            ),
            (
                0x1028,
                Some(Live),
                Some(Live),
                "right behind the end of the block of 40",
            ),
            (
                0x102b,
                Some(Live),
                Some(Live),
                "3 bytes behind the end of the block of 40",
            ),
            (0x2000, Some(Live), Some(Live), "in no block"),
        ] {
            let place = place(&change(address, was, became));
            assert!(place.contains(text), "{place}");
        }
    }

    #[test]
    fn rows_show_digits_and_characters_and_nothing_that_a_terminal_acts_on() {
        let change = change(0x1000, None, None);
        let rows: Vec<_> = rows(&change, 9).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].0, 0x1010);
        assert_eq!(rows[1].1.trim_end(), format!("{:48}|....|", "00 00 00 00"));
        assert!(rows[1].2.ends_with("|AAA.|") && rows[1].2.starts_with("41 41 41 0a"));
    }
}
