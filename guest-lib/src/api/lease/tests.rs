use super::*;
use crate::mock::MockBackend;
use crate::{Kind, thread};
use std::sync::atomic::{AtomicU64, Ordering};

const SIZE: usize = 10_000;

/// Stores a block of such bytes as the root.
fn set(domain: &'static Domain, byte: u8) {
    domain
        .run(|request| {
            let block = match request.root::<u8>() {
                Some(block) => block,
                None => domain.allocate(SIZE, 16)?,
            };
            // SAFETY: a block of that size.
            unsafe { block.as_ptr().write_bytes(byte, SIZE) };
            request.set_root(Some(block))
        })
        .unwrap();
}

fn root(request: &Request) -> Option<NonNull<[u8]>> {
    let block = request.root::<u8>()?;
    Some(NonNull::slice_from_raw_parts(block, SIZE))
}

#[test]
fn what_is_leased_stays_whatever_becomes_of_the_domain() {
    let app = MockBackend::app("leased", |_| ());
    let domain = app.domain("user").unwrap();
    set(domain, 1);
    let first = domain.lease(|request| Ok::<_, Error>(root(request)));
    let first = first.unwrap().unwrap();
    set(domain, 2);
    let second = domain.lease(|request| Ok::<_, Error>(root(request)));
    let second = second.unwrap().unwrap();
    domain
        // SAFETY: nobody uses the block.
        .run(|request| unsafe { request.free(request.root::<u8>().unwrap()) })
        .unwrap();
    domain.delete().unwrap();
    assert_eq!(&*first, [1; SIZE]);
    assert_eq!(&*second, [2; SIZE]);
    std::thread::spawn(move || drop(first)).join().unwrap();
    assert_eq!(second.as_ref(), [2; SIZE]);
}

#[test]
fn a_part_of_a_block_can_be_leased() {
    let app = MockBackend::app("leased in part", |_| ());
    let domain = app.domain("user").unwrap();
    set(domain, 7);
    let leased = domain.lease(|request| {
        let block = request.root::<u8>().unwrap();
        // SAFETY: inside of the block.
        let part = unsafe { block.add(4000) };
        Ok::<_, Error>(Some(NonNull::slice_from_raw_parts(part, 200)))
    });
    assert_eq!(&*leased.unwrap().unwrap(), [7; 200]);
}

#[test]
fn nothing_is_leased_that_is_not_found_or_not_the_domains() {
    let app = MockBackend::app("not leased", |_| ());
    let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
    set(one, 1);
    let none = two.lease(|request| Ok::<_, Error>(root(request)));
    assert!(none.unwrap().is_none());
    let given_up = one.lease(|_| Err("not today"));
    assert!(matches!(given_up, Err(RunError::GivenUp("not today"))));
    let block = one.root_address();
    for (start, length) in [
        (0, 0),
        (0, usize::MAX),
        (isize::MAX, 1),
        (-16 * 4096, 1),
        (64 * 4096, SIZE),
    ] {
        let start = NonNull::new(block.wrapping_offset(start)).unwrap();
        let bytes = NonNull::slice_from_raw_parts(start, length);
        let refused = one.lease(|_| Ok::<_, Error>(Some(bytes)));
        assert!(
            matches!(refused, Err(RunError::Refused(Error::Argument(_)))),
            "{bytes:?}: {refused:?}"
        );
    }
    let bytes = NonNull::slice_from_raw_parts(NonNull::new(block).unwrap(), SIZE);
    let refused = two.lease(|_| Ok::<_, Error>(Some(bytes)));
    assert!(matches!(
        refused,
        Err(RunError::Refused(Error::Argument(_)))
    ));
    // Nor in a request.
    let nested = one.run(|_| match one.lease(|_| Ok::<_, Error>(Some(bytes))) {
        Err(RunError::Refused(error)) => Err::<(), _>(error),
        other => panic!("{other:?}"),
    });
    assert!(matches!(nested, Err(RunError::GivenUp(Error::Nested))));
}

/// Whether an address is mapped.
fn is_mapped(address: u64) -> bool {
    let mut there = 0;
    let page = (address & !4095) as *mut libc::c_void;
    // SAFETY: tells of one page.
    unsafe { libc::mincore(page, 1, &raw mut there) == 0 }
}

#[test]
fn a_request_that_fails_after_it_has_found_leases_nothing() {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let app = MockBackend::app("lease of a failed request", |_| ());
    let domain = app.domain("user").unwrap();
    set(domain, 1);
    let failed = domain.lease(|request| {
        // The audit finds it.
        let block = request.root::<u8>().unwrap();
        let small = request.alloc(1_u8)?;
        // SAFETY: not at all: that is the error.
        unsafe { (&raw mut *small).add(1).write(1) };
        Ok::<_, Error>(Some(NonNull::slice_from_raw_parts(block, SIZE)))
    });
    match failed {
        Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::RedZone),
        other => panic!("{other:?}"),
    }
    // An interrupt that comes while the lease is taken: nothing of it is left.
    let other = app.domain("other").unwrap();
    set(other, 1);
    let mut taken = None;
    let late = other.run(|request| {
        thread::current().unwrap().set_pending(true);
        let bytes = root(request).unwrap();
        let outcome = thread::current()
            .unwrap()
            .critical(|| other.take(bytes, &mut taken));
        TAKEN.store(1, Ordering::Relaxed);
        outcome
    });
    assert!(matches!(late, Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline));
    assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
    let first = taken.as_ref().unwrap().as_ptr() as u64;
    assert!(is_mapped(first));
    drop(taken);
    assert!(!is_mapped(first));
}

#[test]
fn a_lease_that_is_ended_again_unmaps_nothing() {
    let app = MockBackend::app("ended again", |_| ());
    let domain = app.domain("user").unwrap();
    set(domain, 1);
    let lease = || {
        let leased = domain.lease(|request| Ok::<_, Error>(root(request)));
        leased.unwrap().unwrap()
    };
    let first = lease();
    // As a domain has one that a request has dropped before it failed.
    // SAFETY: nobody reads it after the other one is dropped.
    let stale = unsafe { std::ptr::read(&raw const first) };
    drop(first);
    let others: Vec<_> = (0..50).map(|_| lease()).collect();
    drop(stale);
    for other in &others {
        assert_eq!(&**other, [1; SIZE]);
    }
}

#[test]
fn a_request_that_is_cut_short_after_it_has_dropped_a_lease_leaves_none() {
    let app = MockBackend::app("cut short in a drop", |_| ());
    let domain = app.domain("user").unwrap();
    set(domain, 1);
    let mut lease = domain
        .lease(|request| Ok::<_, Error>(root(request)))
        .unwrap();
    assert!(lease.is_some());
    let late = domain.run(|_| {
        thread::current().unwrap().set_pending(true);
        lease = None;
        Ok::<_, Error>(())
    });
    assert!(matches!(late, Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline));
    // It was dropped where it is, but not yet replaced.
    assert_eq!(lease.as_deref(), Some(&[][..]));
}
