//! A small study.

use std::path::Path;

use vmsrs_propagation::access::Access;
use vmsrs_propagation::place::{Region, Target};
use vmsrs_propagation::report::Report;
use vmsrs_propagation::server::Program;
use vmsrs_propagation::trial::{self, Trial};

fn program(name: &str) -> Program {
    Program::build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)).unwrap()
}

#[test]
fn counter_is_read_at_once_and_never_cleansed() {
    let program = program("counter");
    for seed in 1..5 {
        let target = Target::Variable("requests_served");
        let trial = trial::run(&program, target, seed, 20).unwrap();
        let first = trial.first.unwrap();
        assert_eq!(first.access, Access::Read, "seed {seed}");
        assert!(first.after <= 1, "seed {seed}");
        assert_eq!(first.function.as_deref(), Some("run"), "seed {seed}");
        assert_eq!(trial.cleansed_after, None, "seed {seed}");
    }
}

#[test]
fn every_word_is_counted_once_in_each_table() {
    let program = program("words");
    let words: Vec<Trial> = Region::ALL
        .into_iter()
        .cycle()
        .zip(100..110)
        .map(|(region, seed)| trial::run(&program, Target::Any(region), seed, 20).unwrap())
        .collect();
    let report = Report::new(100, 20, &words);
    for row in &report.rows {
        let reads = row.read_first_by_same_request
            + row.read_first_by_same_user
            + row.read_first_by_other_user
            + row.read_first_by_server;
        assert_eq!(row.never_touched + row.written_first + reads, row.corrupted);
        let wrong = row.own_wrong + row.others_wrong + row.crashes + row.hangs;
        assert_eq!(row.harmless + wrong, row.corrupted);
        assert!(row.cleansed_unread <= row.cleansed);
    }
    assert_eq!(report.rows.last().unwrap().corrupted, words.len());
    let owned: usize = report.owners.iter().map(|row| row.corrupted).sum();
    assert_eq!(owned, report.rows[0].corrupted);
    assert!(words.iter().all(|word| word.before != word.corrupted));
}
