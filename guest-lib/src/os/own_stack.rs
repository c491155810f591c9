//! The stack that a thread was started with.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

unsafe extern "C" {
    fn pthread_getattr_np(thread: libc::pthread_t, attributes: *mut libc::pthread_attr_t) -> i32;
}

/// The addresses of the calling thread's; none if the C library does not tell.
pub(crate) fn bounds() -> Range<u64> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: fills the attributes if it returns 0; they are destroyed once.
    unsafe {
        if pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return 0..0;
        }
        let (mut low, mut size) = (ptr::null_mut(), 0);
        let told = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if told == 0 {
            low as u64..low as u64 + size as u64
        } else {
            0..0
        }
    }
}
