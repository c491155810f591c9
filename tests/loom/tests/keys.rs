//! Protection keys: `guest-lib/src/shared/keys.rs`.

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::key_table::KeyTable;

/// Switches that it takes to deceive two looks which only count: one at each step of the other thread.
const BACK_AND_FORTH: usize = 6;

fn taker(table: &Arc<KeyTable>) -> thread::JoinHandle<u32> {
    let table = table.clone();
    thread::spawn(move || table.take(0))
}

#[test]
fn no_two_requests_in_flight_share_a_key_while_there_are_enough() {
    // Two switches each way: while one looks, the other gives back a key that was looked at and takes the next.
    check(4, || {
        let table = Arc::new(KeyTable::new(3));
        // Three in flight at most: one all the time, and one after the other on two threads.
        let first = table.take(1);
        let requests = move |table: &KeyTable, wanted: &[u32]| {
            for &wanted in wanted {
                let key = table.take(wanted);
                assert!(key != 0 && key != first);
                table.write(key);
                table.give_back(key);
            }
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || requests(&table, &[2, 3]))
        };
        requests(&table, &[1]);
        other.join().unwrap();
    });
}

#[test]
fn a_thread_that_keeps_its_key_in_mind_shares_it_with_nobody() {
    check(3, || {
        let table = Arc::new(KeyTable::new(2));
        let requests = |table: &KeyTable, mut key: (u32, u64)| {
            for _ in 0..2 {
                key = table.take_as_thread(key);
                table.write(key.0);
                key = table.give_back_as_thread(key);
            }
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || requests(&table, (1, 0)))
        };
        requests(&table, (1, 0));
        other.join().unwrap();
        // Both keys are free again.
        assert!(table.withdraw().is_some() && table.withdraw().is_some());
    });
}

#[test]
fn a_key_given_back_and_retaken_does_not_look_always_used() {
    check(BACK_AND_FORTH, || {
        let table = Arc::new(KeyTable::new(2));
        let requests = move |table: &KeyTable, wanted: &[u32]| {
            for &wanted in wanted {
                let key = table.take(wanted);
                table.write(key);
                table.give_back(key);
            }
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || requests(&table, &[1, 2, 1, 2, 1]))
        };
        requests(&table, &[1]);
        other.join().unwrap();
    });
}

#[test]
fn requests_that_had_to_share_leave_the_key_free() {
    check(3, || {
        let table = Arc::new(KeyTable::new(1));
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                assert_eq!(table.take(0), 1);
                table.give_back(1);
            })
        };
        assert_eq!(table.take(1), 1);
        table.give_back(1);
        other.join().unwrap();
        assert_eq!(table.withdraw(), Some(1));
    });
}

#[test]
fn a_key_that_was_taken_away_is_no_requests() {
    check(3, || {
        let table = Arc::new(KeyTable::new(2));
        let takers = [taker(&table), taker(&table)];
        let withdrawn = table.withdraw();
        for taker in takers {
            let key = taker.join().unwrap();
            assert_ne!(Some(key), withdrawn);
            assert_ne!(key, 0, "one key is always left");
        }
        assert_eq!(
            table.withdraw(),
            None,
            "requests have the keys that are left"
        );
    });
}

#[test]
fn the_last_key_goes_to_a_request_or_to_the_guard() {
    check(3, || {
        let table = Arc::new(KeyTable::new(1));
        let taker = taker(&table);
        let withdrawn = table.withdraw();
        let key = taker.join().unwrap();
        assert_eq!(key == 1, withdrawn.is_none());
        assert_eq!(table.take(1), key);
    });
}
