//! What unwinding needs of a module's file.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use object::{Object, ObjectSection, ObjectSegment, ReadCache, SegmentFlags};

/// Unwind tables and code of a file, at the addresses that the file states.
#[derive(Debug, Default)]
pub(super) struct Image {
    sections: Vec<Section>,
    /// Executable segments.
    code: Vec<(u64, Arc<[u8]>)>,
}

/// One of [`SECTIONS`].
#[derive(Debug)]
struct Section {
    name: &'static [u8],
    /// Its addresses in the file.
    range: Range<u64>,
    data: Arc<[u8]>,
}

const SECTIONS: [&str; 4] = [".text", ".eh_frame", ".eh_frame_hdr", ".got"];

/// Maximum number of bytes that are read of all files together.
const BYTES_MAX: u64 = 1 << 30;

/// What has been read: each file once, however many modules claim to be it.
#[derive(Debug)]
pub(super) struct Images {
    /// By path; `None` for one that cannot be read, or for which there was no room.
    read: HashMap<PathBuf, Option<Rc<Image>>>,
    /// Bytes that may still be read.
    left: u64,
}

impl Images {
    pub(super) fn new() -> Self {
        Self {
            read: HashMap::new(),
            left: BYTES_MAX,
        }
    }

    /// The image of a file.
    pub(super) fn of(&mut self, path: &Path) -> Option<Rc<Image>> {
        if let Some(known) = self.read.get(path) {
            return known.clone();
        }
        let image = Image::read(path, &mut self.left).map(Rc::new);
        self.read.insert(path.to_owned(), image.clone());
        image
    }
}

impl Image {
    /// Reads a file; `None` if it cannot be read, or has more than the bytes that are `left`.
    fn read(path: &Path, left: &mut u64) -> Option<Self> {
        let cache = ReadCache::new(File::open(path).ok()?);
        let object = object::File::parse(&cache).ok()?;
        let mut image = Self::default();
        let mut take = |size: u64| {
            *left = left.checked_sub(size)?;
            Some(())
        };
        for name in SECTIONS {
            if let Some(section) = object.section_by_name(name) {
                let range = section.address()..section.address().checked_add(section.size())?;
                take(section.file_range().map_or(0, |(_, size)| size))?;
                let data = section.data().unwrap_or_default().into();
                image.sections.push(Section {
                    name: name.as_bytes(),
                    range,
                    data,
                });
            }
        }
        for segment in object.segments() {
            let executable = match segment.flags() {
                SegmentFlags::Elf { p_flags, .. } => p_flags.0 & object::elf::PF_X.0 != 0,
                _ => false,
            };
            if executable {
                take(segment.file_range().1)?;
                let data = segment.data().unwrap_or_default().into();
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

impl framehop::ModuleSectionInfo<Arc<[u8]>> for &Image {
    fn base_svma(&self) -> u64 {
        0
    }

    fn section_svma_range(&mut self, name: &[u8]) -> Option<Range<u64>> {
        let section = self.sections.iter().find(|section| section.name == name);
        section.map(|section| section.range.clone())
    }

    fn section_data(&mut self, name: &[u8]) -> Option<Arc<[u8]>> {
        let section = self.sections.iter().find(|section| section.name == name);
        section.map(|section| section.data.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_and_all_files_have_a_bound_together() {
        let own = std::env::current_exe().unwrap();
        let mut images = Images::new();
        let first = images.of(&own).unwrap();
        let left = images.left;
        assert!(left < BYTES_MAX);
        for _ in 0..1000 {
            assert!(Rc::ptr_eq(&images.of(&own).unwrap(), &first));
        }
        assert_eq!(images.left, left);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        std::fs::copy(&own, &copy).unwrap();
        images.left = BYTES_MAX - left - 1;
        assert!(images.of(&copy).is_none());
        assert!(images.of(Path::new("/nowhere")).is_none());
    }

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
