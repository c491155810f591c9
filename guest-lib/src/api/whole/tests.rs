use super::*;
use crate::mock::MockBackend;
use crate::{App, RunError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use vmsrs_protocol::shared::LOCK_DELETED;

fn set(domain: &'static Domain, value: u64) {
    domain
        .run(|request| {
            let place = request.alloc(value)?;
            request.set_root(Some(place.into()))
        })
        .unwrap();
}

fn get(domain: &'static Domain) -> Result<Option<u64>, RunError<Error>> {
    domain.run(|request| {
        // SAFETY: what set() has stored.
        Ok(request.root::<u64>().map(|place| unsafe { place.read() }))
    })
}

fn is_deleted<T>(outcome: &Result<T, RunError<Error>>) -> bool {
    matches!(
        outcome,
        Err(RunError::Refused(Error::Deleted) | RunError::GivenUp(Error::Deleted))
    )
}

#[test]
fn a_deleted_domain_is_refused_and_its_key_is_a_new_one() {
    let app = MockBackend::app("deleted", |_| ());
    let [alice, bob] = ["alice", "bob"].map(|key| app.domain(key).unwrap());
    set(alice, 1);
    set(bob, 2);
    alice.delete().unwrap();
    assert!(is_deleted(&get(alice)));
    let entered = bob.run(|request| request.enter(alice).map(drop));
    assert!(is_deleted(&entered));
    assert!(matches!(alice.delete(), Err(Error::Deleted)));
    assert!(matches!(alice.info(), Err(Error::Deleted)));
    // The number and the addresses are the next one's.
    let carol = app.domain("carol").unwrap();
    assert_eq!(carol.number(), alice.number());
    assert_eq!(get(carol).unwrap(), None);
    set(carol, 3);
    assert!(is_deleted(&get(alice)));
    // Not even a second deletion reaches it.
    assert!(matches!(alice.delete(), Err(Error::Deleted)));
    assert_eq!(get(carol).unwrap(), Some(3));
    let again = app.domain("alice").unwrap();
    assert!(!std::ptr::eq(again, alice));
    assert_eq!(get(again).unwrap(), None);
    assert_eq!(get(bob).unwrap(), Some(2));
    assert_eq!(get(carol).unwrap(), Some(3));
}

#[test]
fn a_deletion_waits_for_its_request_and_those_that_wait_are_told() {
    let app = MockBackend::app("deleted while waited for", |_| ());
    let alice = app.domain("alice").unwrap();
    let (held, is_held) = mpsc::channel();
    let (free, freed) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let holder = scope.spawn(move || {
            alice.run(|_| {
                held.send(()).unwrap();
                freed.recv().unwrap();
                Ok::<_, Error>(())
            })
        });
        is_held.recv().unwrap();
        let waiters: Vec<_> = (0..3)
            .map(|number| match number {
                0 => scope.spawn(move || alice.delete().map_err(RunError::Refused)),
                _ => scope.spawn(move || get(alice).map(drop)),
            })
            .collect();
        free.send(()).unwrap();
        holder.join().unwrap().unwrap();
        for (number, waiter) in waiters.into_iter().enumerate() {
            let outcome = waiter.join().unwrap();
            // One that came before the deletion has had the domain.
            assert!(outcome.is_ok() || (number != 0 && is_deleted(&outcome)));
        }
    });
    assert!(is_deleted(&get(alice)));
}

#[test]
fn a_deletion_belongs_outside_of_requests() {
    let app = MockBackend::app("deleted inside", |_| ());
    let alice = app.domain("alice").unwrap();
    let outcome = alice.run(|_| alice.delete());
    assert!(matches!(outcome, Err(RunError::GivenUp(Error::Nested))));
    set(alice, 1);
}

#[test]
fn a_deletion_that_is_refused_changes_nothing() {
    let app = MockBackend::app("not deleted", |hooks| {
        hooks.delete = Box::new(|_, _| Some(Err(std::io::Error::from_raw_os_error(libc::ENODEV))));
    });
    let alice = app.domain("alice").unwrap();
    set(alice, 1);
    assert!(matches!(alice.delete(), Err(Error::System { .. })));
    assert_eq!(get(alice).unwrap(), Some(1));
    assert!(std::ptr::eq(app.domain("alice").unwrap(), alice));
}

#[test]
fn many_domains_come_and_go_in_little_memory() {
    let app = MockBackend::app("come and go", |_| ());
    let first = app.domain("0").unwrap();
    let pages = first.first();
    first.delete().unwrap();
    for number in 1..2000 {
        let domain = app.domain(number.to_string()).unwrap();
        assert_eq!((domain.number(), domain.first()), (0, pages));
        set(domain, number);
        assert_eq!(domain.info().unwrap().pages, pages.pages);
        domain.delete().unwrap();
    }
}

/// Another process that has deleted domains: what it lists, and what it was told is noted.
#[derive(Default)]
struct Other {
    deleted: Mutex<Vec<u32>>,
    noted: AtomicU64,
}

fn app_with(other: &Arc<Other>, name: &str) -> &'static App {
    MockBackend::app(name, |hooks| {
        let listed = Arc::clone(other);
        hooks.deletions = Box::new(move || listed.deleted.lock().unwrap().len() as u64);
        let listed = Arc::clone(other);
        hooks.deleted = Box::new(move |after, domains| {
            listed.noted.store(after, Ordering::SeqCst);
            let all = listed.deleted.lock().unwrap();
            let later = &all[after as usize..];
            let count = later.len().min(domains.len());
            domains[..count].copy_from_slice(&later[..count]);
            Ok((count, after + count as u64))
        });
    })
}

#[test]
fn what_another_process_has_deleted_is_noted_before_its_number_is_used_again() {
    let other = Arc::new(Other::default());
    let app = app_with(&other, "deleted elsewhere");
    let [alice, bob] = ["alice", "bob"].map(|key| app.domain(key).unwrap());
    set(alice, 1);
    set(bob, 2);
    // Seventy others that this process has not opened, and alice.
    let mut deleted: Vec<u32> = (100..170).collect();
    deleted.push(alice.number());
    *other.deleted.lock().unwrap() = deleted;
    app.domain("carol").unwrap();
    assert_eq!(other.noted.load(Ordering::SeqCst), 71);
    assert!(is_deleted(&get(alice)));
    assert_eq!(get(bob).unwrap(), Some(2));
}

#[test]
fn a_key_whose_domain_another_process_has_deleted_is_opened_again() {
    let app = MockBackend::app("deleted behind", |_| ());
    let alice = app.domain("alice").unwrap();
    alice.lock_word().store(LOCK_DELETED, Ordering::SeqCst);
    assert!(is_deleted(&get(alice)));
    let again = app.domain("alice").unwrap();
    assert!(!std::ptr::eq(again, alice));
}

#[test]
fn a_domain_tells_how_large_it_is() {
    let app = MockBackend::app("counted", |_| ());
    let alice = app.domain("alice").unwrap();
    let before = alice.info().unwrap();
    alice
        .run(|_| alice.allocate(100_000, 16).map(drop))
        .unwrap();
    let after = alice.info().unwrap();
    assert!(after.pages >= before.pages + 24, "{before:?} {after:?}");
    assert!(after.quarantine.is_zero());
}

#[test]
fn a_cleared_domain_is_empty_and_another_handle() {
    let app = MockBackend::app("cleared", |_| ());
    let alice = app.domain("alice").unwrap();
    set(alice, 1);
    let empty = alice.clear().unwrap();
    assert_eq!((empty.key(), get(empty).unwrap()), (alice.key(), None));
    assert!(is_deleted(&get(alice)));
    assert!(matches!(alice.clear(), Err(Error::Deleted)));
    set(empty, 2);
    assert!(std::ptr::eq(app.domain("alice").unwrap(), empty));
}
