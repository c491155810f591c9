//! Containers in domains: the trait of the crate `allocator-api2`.

use super::inquiry::held_domain;
use crate::state::domain::Domain;
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use std::ptr::NonNull;

/// Where a container has its elements: in a domain. The container can be stored there as well, and is good in other processes and after
/// a restart of the server: this has the domain's number, which all processes know it by.
///
/// Memory is taken and given back in requests that hold the domain. Without, taking some is an [`AllocError`], which most
/// containers make a panic of, and what is given back stays taken.
///
/// What a container has outside of its memory is the program's: all processes that use the domain must be built alike. A hash table
/// needs a hasher without state of the process: with [`std::hash::BuildHasherDefault`], for example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct DomainAllocator {
    number: u32,
}

impl Domain {
    /// For containers whose elements are in this domain.
    #[must_use]
    pub fn allocator(&self) -> DomainAllocator {
        DomainAllocator {
            number: self.number(),
        }
    }
}

/// What has no byte.
fn nothing(layout: Layout) -> NonNull<[u8]> {
    let place = std::ptr::without_provenance_mut(layout.align());
    // SAFETY: no alignment is 0.
    NonNull::slice_from_raw_parts(unsafe { NonNull::new_unchecked(place) }, 0)
}

impl DomainAllocator {
    /// Changes the size of a block, in its place where that is possible. `None` if that is to be done by a new block and a copy.
    ///
    /// # Safety
    ///
    /// As [`Allocator::grow`] and [`Allocator::shrink`].
    unsafe fn resize(self, block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<[u8]>> {
        // A block that moves is aligned to 16.
        if old.size() == 0 || new.size() == 0 || new.align() > 16 {
            return None;
        }
        // SAFETY: the caller gives the old block up.
        let moved = unsafe { held_domain(self.number)?.reallocate(block, new.size()) };
        Some(NonNull::slice_from_raw_parts(moved.ok()?, new.size()))
    }

    /// Changes the size of a block, by a new one and a copy if need be.
    ///
    /// # Safety
    ///
    /// As [`Allocator::grow`] and [`Allocator::shrink`].
    unsafe fn change(
        self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on to the caller.
        if let Some(resized) = unsafe { self.resize(block, old, new) } {
            return Ok(resized);
        }
        let moved = self.allocate(new)?;
        // SAFETY: both blocks have room for that, and the caller gives the old one up.
        unsafe {
            block.copy_to_nonoverlapping(moved.cast(), old.size().min(new.size()));
            self.deallocate(block, old);
        }
        Ok(moved)
    }
}

// SAFETY: a block is its owner's until it is given back, by whichever copy of the allocator. What a request has taken that fails or
// is given up is gone with the request; that nobody uses it afterwards is part of App::open's contract.
unsafe impl Allocator for DomainAllocator {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(nothing(layout));
        }
        let domain = held_domain(self.number).ok_or(AllocError)?;
        let block = domain.allocate(layout.size(), layout.align());
        let block = block.map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(nothing(layout));
        }
        let domain = held_domain(self.number).ok_or(AllocError)?;
        let block = domain.allocate_zeroed(layout.size(), layout.align());
        let block = block.map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        if let Some(domain) = held_domain(self.number) {
            // SAFETY: the caller gives the block up. It cannot fail: the request holds the domain.
            let _ = unsafe { domain.deallocate(block) };
        }
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on to the caller.
        unsafe { self.change(block, old, new) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on to the caller.
        unsafe { self.change(block, old, new) }
    }
}
