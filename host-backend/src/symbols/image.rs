//! What unwinding needs of a module's file.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use object::{Object, ObjectSection, ObjectSegment, ReadCache, SegmentFlags};

/// Unwind tables and code of a file, at the addresses that the file states.
#[derive(Debug, Default)]
pub(super) struct Image {
    sections: Vec<(&'static [u8], Range<u64>, Vec<u8>)>,
    /// Executable segments.
    code: Vec<(u64, Vec<u8>)>,
}

const SECTIONS: [&str; 4] = [".text", ".eh_frame", ".eh_frame_hdr", ".got"];

/// Most bytes of code that are read of a file.
const CODE_MAX: u64 = 1 << 30;

impl Image {
    /// Reads a file; `None` if it cannot be read.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let cache = ReadCache::new(File::open(path).ok()?);
        let object = object::File::parse(&cache).ok()?;
        let mut image = Self::default();
        for name in SECTIONS {
            if let Some(section) = object.section_by_name(name) {
                let range = section.address()..section.address().checked_add(section.size())?;
                let data = section.data().unwrap_or_default().to_vec();
                image.sections.push((name.as_bytes(), range, data));
            }
        }
        for segment in object.segments() {
            let executable = match segment.flags() {
                SegmentFlags::Elf { p_flags, .. } => p_flags.0 & object::elf::PF_X.0 != 0,
                _ => false,
            };
            if executable && segment.size() <= CODE_MAX {
                let data = segment.data().unwrap_or_default().to_vec();
                image.code.push((segment.address(), data));
            }
        }
        Some(image)
    }

    /// Whether a call ends right before an address: only then can the address have been returned to.
    pub(super) fn follows_call(&self, address: u64) -> bool {
        self.code.iter().any(|(start, code)| {
            let end = address
                .checked_sub(*start)
                .and_then(|end| usize::try_from(end).ok());
            end.and_then(|end| code.get(..end))
                .is_some_and(ends_with_call)
        })
    }
}

/// Whether code ends with a near call: `call rel32`, or `call` through a register or memory in any
/// of its lengths (Intel SDM, volume 2, CALL).
fn ends_with_call(code: &[u8]) -> bool {
    let direct = code.len() >= 5 && code[code.len() - 5] == 0xe8;
    direct
        || (2..=7).any(|length| {
            code.len()
                .checked_sub(length)
                .is_some_and(|at| code[at] == 0xff && code[at + 1] >> 3 & 7 == 2)
        })
}

impl framehop::ModuleSectionInfo<Vec<u8>> for &Image {
    fn base_svma(&self) -> u64 {
        0
    }

    fn section_svma_range(&mut self, name: &[u8]) -> Option<Range<u64>> {
        let section = self.sections.iter().find(|section| section.0 == name);
        section.map(|section| section.1.clone())
    }

    fn section_data(&mut self, name: &[u8]) -> Option<Vec<u8>> {
        let section = self.sections.iter().find(|section| section.0 == name);
        section.map(|section| section.2.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_in_all_their_lengths() {
        for code in [
            &[0xe8, 1, 2, 3, 4][..],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
        ] {
            assert!(ends_with_call(code), "{code:x?}");
        }
        for code in [&[][..], &[0xff], &[0xc3], &[0xff, 0xe0], &[0x90; 16]] {
            assert!(!ends_with_call(code), "{code:x?}");
        }
    }
}
