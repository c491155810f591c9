// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A server in Rust with `panic = "abort"`: a panic in a request fails it as any abort does.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

#[repr(C)]
struct Failure {
    kind: u32,
    rest: [u64; 64],
}

unsafe extern "C" {
    fn vmsrs_open(name: *const c_char, app: *mut *mut c_void) -> c_int;
    fn vmsrs_domain_open(
        app: *mut c_void,
        key: *const c_void,
        length: usize,
        domain: *mut *mut c_void,
    ) -> c_int;
    fn vmsrs_run(
        domain: *mut c_void,
        function: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
        result: *mut c_int,
    ) -> c_int;
    fn vmsrs_last_failure(failure: *mut Failure) -> c_int;
}

const FAILED: c_int = -1;
const ABORT: u32 = 4;

extern "C" fn panics(_: *mut c_void, _: *mut c_void) -> c_int {
    panic!("this aborts")
}

extern "C" fn works(_: *mut c_void, _: *mut c_void) -> c_int {
    7
}

fn main() {
    let (mut app, mut domain) = (null_mut(), null_mut());
    // SAFETY: the arguments are as `vmsrs.h` requires.
    unsafe {
        assert_eq!(vmsrs_open(c"aborts".as_ptr(), &raw mut app), 0);
        let key = c"user".as_ptr().cast();
        assert_eq!(vmsrs_domain_open(app, key, 4, &raw mut domain), 0);
        for _ in 0..3 {
            let (mut result, mut failure) = (
                0,
                Failure {
                    kind: 0,
                    rest: [0; 64],
                },
            );
            assert_eq!(
                vmsrs_run(domain, panics, null_mut(), &raw mut result),
                FAILED
            );
            assert_eq!(vmsrs_last_failure(&raw mut failure), 0);
            assert_eq!(failure.kind, ABORT);
            assert_eq!(failure.rest.len(), 64);
            assert_eq!(vmsrs_run(domain, works, null_mut(), &raw mut result), 0);
            assert_eq!(result, 7);
        }
    }
}
