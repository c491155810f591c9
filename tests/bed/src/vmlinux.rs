//! Extracts the uncompressed kernel (vmlinux, an ELF file) from a bzImage.
//!
//! The setup header says where the compressed kernel is (`payload_offset`, `payload_length`); see the kernel's
//! `Documentation/arch/x86/boot.rst`. The compression is known by its magic number.

/// Offset of the number of 512-byte setup sectors.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the magic number `HdrS`.
const HEADER_MAGIC: usize = 0x202;
/// Offset of the boot protocol's version.
const VERSION: usize = 0x206;
/// Offset of the payload's offset, which counts from the end of the setup sectors.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first boot protocol with the payload fields, 2.08.
const FIRST_WITH_PAYLOAD: u16 = 0x0208;

/// What is wrong with a kernel image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The setup header has no magic number.
    #[error("not a bzImage")]
    NotBzImage,
    /// The boot protocol is older than 2.08.
    #[error("boot protocol {0:#06x} is too old: it has no payload fields")]
    TooOld(u16),
    /// The payload lies outside the file.
    #[error("truncated: the payload ends beyond the file")]
    Truncated,
    /// The compression is unknown.
    #[error("unknown compression of the payload")]
    UnknownCompression,
}

/// The program that unpacks a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Legacy lz4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// gzip.
    Gzip,
}

impl Compression {
    /// The command that unpacks standard input to standard output.
    pub fn program(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
        }
    }

    fn of(payload: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 4] = [
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z'], Compression::Xz),
            (&[0x1f, 0x8b], Compression::Gzip),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| payload.starts_with(magic))
            .map(|&(_, compression)| compression)
    }
}

/// Finds the compressed kernel in a bzImage.
///
/// The kernel's build appends the unpacked size, four bytes that are not part of the compressed stream, so the payload
/// is returned without them. gzip has that size in its own format.
///
/// # Errors
///
/// When the image is not a bzImage of boot protocol 2.08 or later, is truncated, or has an unknown compression.
pub fn payload(image: &[u8]) -> Result<(Compression, &[u8]), Error> {
    let bytes = |at: usize, len: usize| image.get(at..at + len);
    let u16_at = |at| bytes(at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at| bytes(at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);

    if bytes(HEADER_MAGIC, 4) != Some(b"HdrS") {
        return Err(Error::NotBzImage);
    }
    let version = u16_at(VERSION).ok_or(Error::Truncated)?;
    if version < FIRST_WITH_PAYLOAD {
        return Err(Error::TooOld(version));
    }
    // Zero means four, for old boot loaders.
    let setup_sectors = match image.get(SETUP_SECTS).copied().ok_or(Error::Truncated)? {
        0 => 4,
        count => usize::from(count),
    };
    let offset = u32_at(PAYLOAD_OFFSET).ok_or(Error::Truncated)?;
    let length = u32_at(PAYLOAD_LENGTH).ok_or(Error::Truncated)?;
    let start = (setup_sectors + 1) * 512 + offset;
    let payload = image.get(start..start + length).ok_or(Error::Truncated)?;
    let compression = Compression::of(payload).ok_or(Error::UnknownCompression)?;
    let stream = match compression {
        Compression::Gzip => payload,
        _ => &payload[..length.saturating_sub(4)],
    };
    Ok((compression, stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with two setup sectors and `payload` 16 bytes after them.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[SETUP_SECTS] = 2;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_without_the_appended_size() {
        let image = image(&[0x02, 0x21, 0x4c, 0x18, 0xaa, 0xbb, 1, 0, 0, 0]);
        let expected: &[u8] = &[0x02, 0x21, 0x4c, 0x18, 0xaa, 0xbb];
        assert_eq!(payload(&image), Ok((Compression::Lz4, expected)));
    }

    #[test]
    fn gzip_keeps_its_own_size_field() {
        let image = image(&[0x1f, 0x8b, 1, 0, 0, 0]);
        let expected: &[u8] = &[0x1f, 0x8b, 1, 0, 0, 0];
        assert_eq!(payload(&image), Ok((Compression::Gzip, expected)));
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(payload(b"#!/bin/sh\n"), Err(Error::NotBzImage));
        assert_eq!(payload(&[0; 4096]), Err(Error::NotBzImage));
    }

    #[test]
    fn a_truncated_kernel_is_refused() {
        let mut image = image(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0]);
        image.pop();
        assert_eq!(payload(&image), Err(Error::Truncated));
        image.truncate(VERSION + 1);
        assert_eq!(payload(&image), Err(Error::Truncated));
    }

    #[test]
    fn an_old_boot_protocol_is_refused() {
        let mut image = image(&[]);
        image[VERSION..VERSION + 2].copy_from_slice(&0x0207u16.to_le_bytes());
        assert_eq!(payload(&image), Err(Error::TooOld(0x0207)));
    }

    #[test]
    fn an_unknown_compression_is_refused() {
        assert_eq!(
            payload(&image(b"plain data")),
            Err(Error::UnknownCompression)
        );
    }
}
