//! Protection keys: `guest-lib/src/keys.rs`.

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::key_table::KeyTable;

fn taker(table: &Arc<KeyTable>) -> thread::JoinHandle<u32> {
    let table = table.clone();
    thread::spawn(move || table.take())
}

#[test]
fn a_key_that_was_taken_away_is_no_threads() {
    check(3, || {
        let table = Arc::new(KeyTable::new(2));
        let takers = [taker(&table), taker(&table)];
        let withdrawn = table.withdraw();
        for taker in takers {
            let key = taker.join().unwrap();
            assert_ne!(Some(key), withdrawn);
            assert_ne!(key, 0, "one is always left");
        }
        assert_eq!(table.left(), 2 - u32::from(withdrawn.is_some()));
        assert_eq!(table.threads(1) + table.threads(2), 2);
    });
}

#[test]
fn the_last_key_goes_to_a_thread_or_to_the_guard_and_never_to_both() {
    check(3, || {
        let table = Arc::new(KeyTable::new(1));
        let taker = taker(&table);
        let withdrawn = table.withdraw();
        let key = taker.join().unwrap();
        // Both may have seen the other and stood back; then the key is there for the next one.
        assert_ne!(Some(key), withdrawn);
        assert_eq!(table.left(), u32::from(withdrawn.is_none()));
        assert_eq!(table.threads(1), u32::from(key == 1));
        if key == 0 && withdrawn.is_none() {
            assert_eq!(table.take(), 1);
        }
    });
}

#[test]
fn a_key_that_was_given_back_can_be_taken_away() {
    check(3, || {
        let table = Arc::new(KeyTable::new(1));
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                let key = table.take();
                table.give_back(key);
            })
        };
        other.join().unwrap();
        assert_eq!(table.withdraw(), Some(1));
        assert_eq!(table.take(), 0);
    });
}
