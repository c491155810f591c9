//! Names that a C library, or an allocator, has or has not.

/// The address of something of the C library's, 0 if it is another one.
macro_rules! address_of {
    ($name:literal) => {{
        let address: usize;
        // SAFETY: reads the address.
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        address
    }};
}
pub(super) use address_of;
