//! Unwinding a kept stack: by the unwind tables of the modules' files, as debuggers do it.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder};

use super::files::ModuleFiles;
use super::image::{Image, Images};
use super::modules::Module;

/// Maximum number of frames that are followed.
pub(super) const FRAMES_MAX: usize = 128;

/// Maximum number of words of the stack that are looked through for a return address.
const SCAN_MAX: u64 = 256;

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// The instruction pointer of the registers.
    Registers,
    /// By unwind tables.
    Tables,
    /// By frame pointers, in the guest.
    FramePointer,
    /// A return address on the stack that follows a call: the caller, or what is left of a call that
    /// has returned.
    Scan,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The instruction pointer, or the return address.
    pub(super) address: u64,
    pub(super) found: Found,
}

impl Place {
    /// An address inside the instruction that the frame is at.
    pub(super) fn lookup(self) -> u64 {
        match self.found {
            Found::Registers => self.address,
            _ => self.address.saturating_sub(1),
        }
    }
}

/// A kept part of a stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack<'a> {
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
}

impl Stack<'_> {
    /// The word at an address, if it is kept.
    fn word(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let word = self.bytes.get(offset..)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    }
}

/// The modules of a program with what their files have.
pub(super) struct Program<'a> {
    modules: &'a [Module],
    /// By the module's first address.
    images: HashMap<u64, Rc<Image>>,
    unwinder: UnwinderX86_64<Arc<[u8]>>,
}

impl<'a> Program<'a> {
    pub(super) fn new(modules: &'a [Module], files: &[ModuleFiles]) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        let mut images = HashMap::new();
        let mut read = Images::new();
        for (module, files) in modules.iter().zip(files) {
            let Some(image) = files.image.as_deref().and_then(|path| read.of(path)) else {
                continue;
            };
            unwinder.add_module(framehop::Module::new(
                module.path.clone(),
                module.start..module.end,
                module.bias,
                &*image,
            ));
            images.insert(module.start, image);
        }
        Self {
            modules,
            images,
            unwinder,
        }
    }

    fn image(&self, address: u64) -> Option<(&Module, &Image)> {
        let module = Module::at(self.modules, address)?;
        Some((module, self.images.get(&module.start)?))
    }

    /// The next return address on the stack from `from` on that follows a call, and its place.
    fn scan(&self, stack: Stack<'_>, from: u64) -> Option<(u64, u64)> {
        (0..SCAN_MAX)
            .map_while(|word| from.checked_add(8 * word))
            .map_while(|place| Some((place, stack.word(place)?)))
            .find(|&(_, word)| {
                self.image(word)
                    .is_some_and(|(module, image)| image.follows_call(word - module.bias))
            })
    }

    /// The frames, innermost first. `pointers` are the return addresses that the guest found by
    /// frame pointers, for want of anything better.
    pub(super) fn unwind(
        &self,
        (rip, rsp, rbp): (u64, u64, u64),
        stack: Stack<'_>,
        pointers: &[u64],
    ) -> Vec<Place> {
        let mut frames = vec![Place {
            address: rip,
            found: Found::Registers,
        }];
        let mut registers = UnwindRegsX86_64::new(rip, rsp, rbp);
        let mut cache = CacheX86_64::new();
        let mut at = FrameAddress::from_instruction_pointer(rip);
        while frames.len() < FRAMES_MAX {
            let sp = registers.sp();
            let known = self.image(at.address_for_lookup()).is_some();
            let next = if known {
                let mut read = |address| stack.word(address).ok_or(());
                match self
                    .unwinder
                    .unwind_frame(at, &mut registers, &mut cache, &mut read)
                {
                    // The outermost frame.
                    Ok(None) => break,
                    Ok(Some(next)) => Some((next, Found::Tables)),
                    Err(_) => None,
                }
            } else {
                None
            };
            // A jump to nowhere leaves the return address on top; in a module without a file the
            // caller is further up. Frames of such modules are passed over.
            let next = next
                .filter(|&(next, _)| Module::at(self.modules, next).is_some())
                .or_else(|| {
                    let (place, address) = self.scan(stack, sp)?;
                    registers.set_sp(place + 8);
                    Some((address, Found::Scan))
                });
            let Some((address, found)) = next else {
                break;
            };
            // Towards the bottom of the stack only, so that this ends.
            if found == Found::Tables && registers.sp() <= sp {
                break;
            }
            frames.push(Place { address, found });
            match FrameAddress::from_return_address(address) {
                Some(address) => at = address,
                None => break,
            }
        }
        if frames.len() == 1 {
            let pointers = pointers.iter().take_while(|&&address| address != 0);
            frames.extend(pointers.map(|&address| Place {
                address,
                found: Found::FramePointer,
            }));
        }
        frames
    }
}
