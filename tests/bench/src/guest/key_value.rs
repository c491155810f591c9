//! A key-value server's tables, without a network.

use std::hint::black_box;
use std::sync::Mutex;

use anyhow::{Result, anyhow};
use vmsrs::App;

use super::meter::{Meter, Watch};
use super::random::Random;
use super::table::{Table, VALUE};
use super::{request, seal};
use crate::sample::{Sample, What};

/// Tables of the key-value server, each in its own domain.
const SHARDS: u64 = 16;
/// Keys of the key-value server: half of the tables' slots.
const KEYS: u64 = SHARDS * 512;
/// Percentages of operations that write.
const WRITES_PERCENT: [u32; 2] = [5, 50];

/// The key-value server: each operation is a request for its key's domain, or without VMSRS takes its table's lock.
pub(super) fn measure(meter: &Meter, app: &'static App, operations: u32) -> Result<()> {
    let mut shards = Vec::new();
    let mut tables = Vec::new();
    for shard in 0..SHARDS {
        let domain = app.domain(format!("shard {shard}"))?;
        let block = domain.run(|_| domain.allocate(size_of::<Table>(), align_of::<Table>()));
        let block = block.map_err(|error| anyhow!("take a table: {error:?}"))?;
        shards.push((domain, block.cast::<Table>()));
        tables.push(Mutex::new(Box::new(Table::new())));
    }
    let protected = |key: u64, value: Option<[u8; VALUE]>| {
        let (domain, table) = shards[(key % SHARDS) as usize];
        request(domain, || {
            // SAFETY: a block of the domain, large enough, all zeros or a table; the request holds the domain.
            operation(unsafe { &mut *table.as_ptr() }, key, value);
        })
    };
    let plain = |key: u64, value: Option<[u8; VALUE]>| {
        let mut table = tables[(key % SHARDS) as usize]
            .lock()
            .map_err(|_| anyhow!("a table's lock is poisoned"))?;
        operation(&mut table, key, value);
        Ok(())
    };
    for (shard, (domain, table)) in (0..).zip(&shards) {
        let keys = || (1..=KEYS).filter(|key| key % SHARDS == shard);
        request(domain, || {
            // SAFETY: as above.
            let table = unsafe { &mut *table.as_ptr() };
            keys().for_each(|key| operation(table, key, Some([1; VALUE])));
        })?;
        keys().try_for_each(|key| plain(key, Some([1; VALUE])))?;
    }
    seal(shards[0].0)?;
    for writes_percent in WRITES_PERCENT {
        let measure = |is_protected, serve: &dyn Fn(u64, Option<[u8; VALUE]>) -> Result<()>| {
            meter.phase(operations, |operations| {
                let mut random = Random::new();
                let watch = Watch::start();
                for _ in 0..operations {
                    let writes = random.next() % 100 < u64::from(writes_percent);
                    let key = random.next() % KEYS + 1;
                    serve(key, writes.then_some([key as u8; VALUE]))?;
                }
                let sample = Sample::new(What::KeyValue, is_protected, operations).lasted(watch);
                if is_protected {
                    seal(shards[0].0)?;
                }
                Ok(Sample {
                    writes_percent: Some(writes_percent),
                    ..sample
                })
            })
        };
        measure(false, &plain)?;
        measure(true, &protected)?;
    }
    Ok(())
}

fn operation(table: &mut Table, key: u64, value: Option<[u8; VALUE]>) {
    match value {
        Some(value) => assert!(table.put(key, value), "half of the places are free"),
        None => assert!(black_box(table.get(key)).is_some(), "all keys are there"),
    }
}
