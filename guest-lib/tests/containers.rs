//! Containers whose elements are in a domain, by the trait of `allocator-api2`.

use allocator_api2::vec::Vec;
use hashbrown::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use vmsrs::{App, Domain, DomainAllocator, Error, Kind, Request, RunError};

/// FNV-1a: a hasher without state of the process.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

type Text = Vec<u8, DomainAllocator>;
type Table = HashMap<u64, Text, BuildHasherDefault<Fnv>, DomainAllocator>;

fn open(key: &str) -> &'static Domain {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("containers") }.unwrap();
    app.domain(key).unwrap()
}

/// The domain's table, made if there is none.
#[expect(
    clippy::mut_from_ref,
    reason = "the table is the domain's, which the request holds"
)]
fn table(request: &Request) -> Result<&mut Table, Error> {
    if let Some(mut table) = request.root::<Table>() {
        // SAFETY: a table that no other request uses meanwhile.
        return Ok(unsafe { table.as_mut() });
    }
    let domain = request.domain();
    let table = request.alloc(Table::with_hasher_in(
        BuildHasherDefault::default(),
        domain.allocator(),
    ))?;
    request.set_root(Some(table.into()))?;
    Ok(table)
}

fn text(domain: &Domain, value: &str) -> Text {
    let mut text = Text::new_in(domain.allocator());
    text.extend_from_slice(value.as_bytes());
    text
}

#[test]
fn a_table_of_texts_lives_in_a_domain() {
    let domain = open("table");
    for number in 0..2000_u64 {
        domain
            .run(|request| {
                let table = table(request)?;
                let entry = table.entry(number % 700);
                let text = entry.or_insert_with(|| text(domain, "now"));
                text.extend_from_slice(format!(" {number}").as_bytes());
                Ok::<_, Error>(())
            })
            .unwrap();
    }
    let found = domain.run(|request| {
        let table = table(request)?;
        Ok::<_, Error>((
            table.len(),
            String::from_utf8_lossy(&table[&50]).into_owned(),
        ))
    });
    assert_eq!(found.unwrap(), (700, "now 50 750 1450".to_owned()));
    // All of it is given back.
    let used = domain.info().unwrap().pages;
    for _ in 0..5 {
        domain
            .run(|request| {
                table(request)?.clear();
                table(request)?.shrink_to_fit();
                for number in 0..700 {
                    let text = text(domain, &"x".repeat(number as usize % 60));
                    table(request)?.insert(number, text);
                }
                Ok::<_, Error>(())
            })
            .unwrap();
    }
    let more = domain.info().unwrap().pages;
    assert!(more <= 2 * used, "{used} pages became {more}");
}

#[test]
fn a_container_can_have_a_huge_block() {
    const BYTES: usize = 100 << 20;
    let domain = open("huge");
    let outcome = domain.run(|_| {
        let mut large = Text::with_capacity_in(BYTES, domain.allocator());
        let first = large.as_ptr();
        large.push(7);
        large.shrink_to(BYTES / 2);
        assert_eq!((large.as_ptr(), large.capacity()), (first, BYTES / 2));
        large.reserve_exact(BYTES - 1);
        assert_eq!(
            (large.as_ptr(), large[0]),
            (first, 7),
            "there is room after it"
        );
        Ok::<_, Error>(())
    });
    outcome.unwrap();
}

#[test]
fn an_overrun_of_an_element_fails_its_request() {
    let domain = open("overrun");
    let outcome = domain.run(|request| {
        let table = table(request)?;
        table.insert(1, text(domain, "twelve bytes"));
        let text = table.get_mut(&1).unwrap();
        text.shrink_to_fit();
        let end = text.as_mut_ptr().wrapping_add(text.capacity());
        // SAFETY: not at all: that is the error.
        unsafe { end.write(b'!') };
        Ok::<_, Error>(())
    });
    assert!(matches!(outcome, Err(RunError::Failed(failure)) if failure.kind == Kind::RedZone));
}

#[test]
fn memory_is_taken_in_requests_that_hold_the_domain() {
    let [one, two] = ["one", "two"].map(open);
    assert!(vmsrs::held_domain(one.number()).is_none());
    let mut outside = Text::new_in(one.allocator());
    assert!(outside.try_reserve(1).is_err());
    let kept = two
        .run(|request| {
            assert!(vmsrs::held_domain(one.number()).is_none());
            let mut text = Text::new_in(one.allocator());
            assert!(text.try_reserve(1).is_err());
            let entered = request.enter(one)?;
            assert!(std::ptr::eq(vmsrs::held_domain(one.number()).unwrap(), one));
            text.try_reserve(1).unwrap();
            entered.keep();
            // Nothing without bytes is a block.
            drop(Vec::<(), _>::with_capacity_in(7, one.allocator()));
            let mut large = Vec::<u64, _>::with_capacity_in(4, one.allocator());
            large.extend(0..1000);
            large.truncate(3);
            large.shrink_to_fit();
            assert_eq!(*large, [0, 1, 2]);
            Ok::<_, Error>(text)
        })
        .unwrap();
    // It stays taken: nobody holds the domain.
    drop(kept);
    assert_eq!(one.allocator(), one.allocator());
    assert_ne!(one.allocator(), two.allocator());
}
