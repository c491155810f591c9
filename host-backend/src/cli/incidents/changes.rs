//! Changed bytes in words and as hexadecimal digits.

use std::fmt::Write as _;

use vmsrs_protocol::heap::RED_ZONE_MAX;

use crate::control::{BlockFacts, BlockState, ChangeFacts, RequestFacts};

/// Bytes in a row.
pub(super) const ROW: usize = 16;

/// How far past a block's end a change is still attributed to it: a red zone and a neighbour's header.
const NEAR: u64 = 256;

/// Where a change lies, as a phrase: in, before or past which block.
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
        let beyond = (change.address.saturating_add(change.new.len() as u64)).saturating_sub(end);
        // The heap itself writes past a block when it makes one.
        let made = block.was != Some(BlockState::Live) && block.became == Some(BlockState::Live);
        match beyond {
            0 => from,
            _ if made || block.was.is_none() => from,
            beyond => format!("{from}, and {beyond} bytes past its end"),
        }
    } else if change.address == end {
        format!("immediately past the end of {name}")
    } else if change.address - end < NEAR {
        format!("{} bytes past the end of {name}", change.address - end)
    } else {
        "in no block: free, or the heap's own bookkeeping".into()
    }
}

/// The change that contains the byte at an address.
pub(super) fn change_at(address: u64, request: &RequestFacts) -> Option<&ChangeFacts> {
    let mut changes = request.drafts.iter().flat_map(|draft| &draft.changes);
    changes.find(|change| {
        let from = address.checked_sub(change.address);
        from.is_some_and(|from| from < change.new.len() as u64)
    })
}

/// Past the end of which block a changed byte lies, as a phrase.
pub(super) fn past_block(address: u64, request: &RequestFacts) -> Option<String> {
    let change = change_at(address, request)?;
    // Where a header is damaged, another block may lie between.
    let block = (change.block.as_ref()).filter(|block| block.became.is_some())?;
    let bytes = address.checked_sub(block.address.checked_add(block.size)?)?;
    // Past the longest red zone lies another block, whose header is damaged or unknown.
    (bytes <= RED_ZONE_MAX as u64).then(|| {
        let distance = match bytes {
            0 => "immediately".to_owned(),
            _ => format!("{bytes} bytes"),
        };
        format!(
            "{distance} past the end of the {} of {} bytes at {:#x}",
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
    fn a_change_is_placed_in_or_past_its_block() {
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
                ", and 12 bytes past its end",
            ),
            (
                0x1028,
                Some(Live),
                Some(Live),
                "immediately past the end of the block of 40",
            ),
            (
                0x102b,
                Some(Live),
                Some(Live),
                "3 bytes past the end of the block of 40",
            ),
            (0x2000, Some(Live), Some(Live), "in no block"),
        ] {
            let place = place(&change(address, was, became));
            assert!(place.contains(text), "{place}");
        }
    }

    #[test]
    fn heap_writes_past_a_new_block_are_not_blamed() {
        use BlockState::{Freed, Live};
        for was in [None, Some(Freed)] {
            let place = place(&change(0x1020, was, Some(Live)));
            assert!(place.ends_with("bytes at 0x1000 on"), "{place}");
        }
    }

    /// A request with a change of 20 bytes at each of these addresses.
    fn request(changes: &[(u64, BlockFacts)]) -> RequestFacts {
        let view = super::super::sample::view();
        let mut request = view.detail.request().unwrap().clone();
        request.drafts[0].changes = changes
            .iter()
            .map(|(address, block)| ChangeFacts {
                block: Some(block.clone()),
                ..change(*address, None, None)
            })
            .collect();
        request
    }

    #[test]
    fn address_is_past_the_block_of_its_own_change() {
        use BlockState::{Freed, Live};
        let freed = BlockFacts {
            address: 0x89d0,
            size: 5,
            was: Some(Live),
            became: Some(Freed),
        };
        let overrun = BlockFacts {
            address: 0x89f0,
            size: 9,
            was: None,
            became: Some(Live),
        };
        // A former block that starts later does not matter to a change that has a block of its own.
        let other = BlockFacts {
            address: 0x89f8,
            ..freed.clone()
        };
        let request = request(&[(0x89c0, freed), (0x89e8, overrun), (0x8b00, other)]);
        assert_eq!(
            past_block(0x89f9, &request).as_deref(),
            Some(
                "immediately past the end of the block (allocated by this request) of 9 bytes at 0x89f0"
            )
        );
    }

    #[test]
    fn address_is_placed_only_past_the_last_block_before_it() {
        use BlockState::Live;
        let block = |size, became| BlockFacts {
            address: 0x1000,
            size,
            was: Some(Live),
            became,
        };
        for (address, block) in [
            (0x1028, block(40, None)),
            (0x1050, block(40, Some(Live))),
            (0x1010, block(40, Some(Live))),
            (0x1010, block(u64::MAX, Some(Live))),
        ] {
            assert_eq!(past_block(address, &request(&[(address, block)])), None);
        }
    }

    #[test]
    fn rows_are_safe_for_a_terminal() {
        let change = change(0x1000, None, None);
        let rows: Vec<_> = rows(&change, 9).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].0, 0x1010);
        assert_eq!(rows[1].1.trim_end(), format!("{:48}|....|", "00 00 00 00"));
        assert!(rows[1].2.ends_with("|AAA.|") && rows[1].2.starts_with("41 41 41 0a"));
    }
}
