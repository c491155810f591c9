//! Descriptors of a split virtqueue.

use bytemuck::{Pod, Zeroable};

/// Flag: the chain continues at [`Descriptor::next`].
pub const NEXT: u16 = 1;
/// Flag: the device writes to the buffer.
pub const WRITE: u16 = 2;
/// Flag: the buffer holds a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor (Virtio 1.2, 2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, with [`NEXT`].
    pub next: u16,
}

/// Links descriptors, in the given order, into one chain that starts at entry 0.
pub fn linked(chain: &[Descriptor]) -> Vec<Descriptor> {
    let last = chain.len().saturating_sub(1);
    let link = |(index, descriptor): (usize, &Descriptor)| Descriptor {
        flags: descriptor.flags | if index < last { NEXT } else { 0 },
        next: index as u16 + 1,
        ..*descriptor
    };
    chain.iter().enumerate().map(link).collect()
}
