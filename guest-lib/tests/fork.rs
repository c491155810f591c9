//! The child of a fork in a request. A test program of its own, since a child can do more than end only if the process
//! has at most one other thread.

mod common;

use common::domain;
use vmsrs::{Error, RunError};

#[test]
fn child_forked_in_request_leaves_it_with_error() {
    let domain = domain();
    let outcome = domain.run(|_| {
        // SAFETY: this program has at most one other thread.
        Ok::<_, ()>(unsafe { libc::fork() })
    });
    match outcome {
        Err(RunError::Refused(Error::Forked)) => {
            // In the child.
            let again = domain.app().domain("after the fork").unwrap();
            let succeeds = again.run(|_| Ok::<_, ()>(7)).is_ok_and(|value| value == 7);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(!succeeds)) }
        }
        Ok(child) => {
            let mut status = 0;
            // SAFETY: waits for the child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "{status:#x}"
            );
        }
        other => panic!("{other:?}"),
    }
}
