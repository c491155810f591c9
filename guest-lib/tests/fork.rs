//! The child of a fork: a separate test program, since only a process with at most one other thread can do
//! more than exit in the child.

mod common;

use common::domain;
use vmsrs::{Error, RunError};

#[test]
fn child_forked_in_a_request_leaves_it_with_an_error() {
    let domain = domain();
    let outcome = domain.run(|_| {
        // SAFETY: the child only ends.
        Ok::<_, ()>(unsafe { libc::fork() })
    });
    match outcome {
        Err(RunError::Refused(Error::Forked)) => {
            // In the child.
            let again = domain.app().domain("after the fork").unwrap();
            let fine = again.run(|_| Ok::<_, ()>(7)).is_ok_and(|value| value == 7);
            // SAFETY: ends the child without touching what it shares with the parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) }
        }
        Ok(child) => {
            let mut status = 0;
            // SAFETY: waits for the child made above.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "{status:#x}"
            );
        }
        other => panic!("{other:?}"),
    }
}
