//! The measurements in the guest: the same work with and without a request, a key-value server, and errors.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::hint::black_box;
use std::io::{Write, stdin, stdout};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use vmsrs::{App, Domain, Options};

use crate::host::{FACT, READY};
use crate::load::{Load, Server};
use crate::mark;
use crate::profile::facts;
use crate::random::Random;
use crate::sample::{Parts, Sample, ServerLoad, What};
use crate::table::{Table, VALUE};

const PAGE: usize = 4096;
/// Pages of the block that requests write to.
const PAGES: usize = 256;
/// Pages that a request writes.
const WRITTEN: [usize; 4] = [1, 4, 16, 64];
/// Pages that a failing request has written.
const WRITTEN_BEFORE_AN_ERROR: [usize; 5] = [1, 4, 16, 64, 256];

/// Requests of [`PAGES`] pages after which each frame of the window has been used.
const WARM_UP: usize = 2 * crate::host::WINDOW_MIB * 1024 * 1024 / PAGE / PAGES;

/// Tables of the key-value server, each in its own domain.
const SHARDS: u64 = 16;
/// Keys of the key-value server: half of the tables' slots.
const KEYS: u64 = SHARDS * 512;
/// Percentages of operations that write.
const WRITES_PERCENT: [u32; 2] = [5, 50];

/// Servers in the guest's image: name, mode, command.
const SERVERS: [(&str, &str, &[&str]); 3] = [
    (
        "memcached",
        "plain",
        &["memcached", "-u", "root", "-t", "1", "-m", "48"],
    ),
    (
        "cache",
        "plain",
        &["cache-plain", "-t", "1", "-m", "48", "-s", "16"],
    ),
    (
        "cache",
        "protected",
        &["cache", "-t", "1", "-m", "48", "-s", "16"],
    ),
];
/// Sizes of values, and how many keys have one.
const VALUES: [(usize, u64); 3] = [(100, 4096), (1024, 4096), (16 * 1024, 512)];
/// Percentages of commands that set a value.
const SERVER_WRITES_PERCENT: [u32; 3] = [0, 5, 50];

/// Measures everything. Small measurements have more rounds, so that each takes about as long as `rounds` requests that
/// write to 64 pages.
pub(crate) fn measure(rounds: u32, profile: bool) -> Result<()> {
    if profile {
        for fact in facts::of_guest()? {
            println!("{FACT}{}", serde_json::to_string(&fact)?);
        }
    }
    // SAFETY: no request here lends its locals to other threads.
    let app = unsafe { App::open("bench") }?;
    let user = app.domain("user")?;
    let block = user.run(|_| user.allocate(PAGES * PAGE, PAGE));
    let block = block.map_err(|error| anyhow!("take a block: {error:?}"))?;
    let block = block.as_ptr();
    // The first writes grow the domain's memory, which is not measured.
    request(user, || write(block, PAGES))?;
    seal(user)?;

    let mut plain = vec![0u8; (PAGES + 1) * PAGE];
    let offset = plain.as_ptr().align_offset(PAGE);
    let plain = plain.as_mut_ptr().wrapping_add(offset);
    write(plain, PAGES);

    // The host allocates a frame's memory at its first use.
    for _ in 0..WARM_UP {
        request(user, || write(block, PAGES))?;
        seal(user)?;
    }

    // The first one also warms up the console.
    for _ in 0..2 {
        phase(|| Ok(Sample::new(What::Nothing, false, 1)))?;
    }
    phase(|| {
        let rounds = rounds * 100;
        let watch = Watch::start();
        for _ in 0..rounds {
            black_box(__cpuid(0));
        }
        Ok(Sample::new(What::Exit, false, rounds).lasted(watch))
    })?;

    let alone = |pages, rounds, work: fn(*mut u8, usize)| {
        phase(|| {
            work(plain, pages);
            let watch = Watch::start();
            for _ in 0..rounds {
                work(plain, pages);
            }
            let sample = Sample::new(What::Request, false, rounds).lasted(watch);
            Ok(Sample { pages, ..sample })
        })
    };
    let in_requests = |pages, rounds, work: fn(*mut u8, usize)| {
        // The first request allocates stacks and frames and warms the caches.
        request(user, || work(block, pages))?;
        phase(|| {
            let mut stamps = Stamps::default();
            let watch = Watch::start();
            for _ in 0..rounds {
                stamps.request(user, || work(block, pages))?;
            }
            let sample = Sample::new(What::Request, true, rounds).lasted(watch);
            let parts = stamps.parts(sample.nanoseconds);
            // Sealing is part of the host's work.
            seal(user)?;
            Ok(Sample {
                pages,
                parts: Some(parts),
                ..sample
            })
        })
    };
    alone(0, rounds * 200, read)?;
    in_requests(0, rounds * 200, read)?;
    for pages in WRITTEN {
        let rounds = rounds * 64 / pages as u32;
        alone(pages, rounds, write)?;
        in_requests(pages, rounds, write)?;
    }
    for pages in WRITTEN_BEFORE_AN_ERROR {
        let rounds = rounds.div_ceil(2);
        phase(|| {
            let mut nanoseconds = 0.0;
            for _ in 0..rounds {
                nanoseconds += error_to_next_request(user, block, pages)? as f64;
            }
            seal(user)?;
            Ok(Sample {
                pages,
                nanoseconds: nanoseconds / f64::from(rounds),
                ..Sample::new(What::Recovery, true, rounds)
            })
        })?;
    }
    key_value(app, rounds * 40)?;
    servers(rounds * 20)
}

/// Servers as users run them: over loopback TCP.
fn servers(commands: u32) -> Result<()> {
    for (server, mode, command) in SERVERS {
        for (value_bytes, keys) in VALUES {
            let mut running = Server::start(command)?;
            let load = |writes_percent| Load {
                keys,
                value_bytes,
                writes_percent,
            };
            running.fill(load(0))?;
            for writes_percent in SERVER_WRITES_PERCENT {
                let load = load(writes_percent);
                let mut random = Random::new();
                running.run(load, commands / 5, &mut random)?;
                phase(|| {
                    let before = running.cpu_ns()?;
                    mark::start();
                    let sent = running.run(load, commands, &mut random)?;
                    mark::stop();
                    let spent = running.cpu_ns()? - before;
                    Ok(Sample {
                        writes_percent: Some(writes_percent),
                        nanoseconds: spent as f64 / f64::from(sent),
                        server: Some(ServerLoad {
                            server: server.to_owned(),
                            mode: mode.to_owned(),
                            value_bytes,
                        }),
                        ..Sample::new(What::Server, mode == "protected", sent)
                    })
                })?;
            }
        }
    }
    Ok(())
}

/// Makes one measurement, which the host brackets with its counters.
fn phase(measure: impl FnOnce() -> Result<Sample>) -> Result<()> {
    println!("{READY}");
    stdout().flush()?;
    let read = stdin().read_line(&mut String::new())?;
    ensure!(read > 0, "the host does not answer on the console");
    mark::next_phase();
    println!("{}", measure()?.line()?);
    Ok(())
}

impl Sample {
    fn new(what: What, protected: bool, rounds: u32) -> Self {
        Self {
            what,
            pages: 0,
            writes_percent: None,
            protected,
            rounds,
            nanoseconds: 0.0,
            parts: None,
            server: None,
        }
    }

    fn lasted(self, watch: Watch) -> Self {
        Self {
            nanoseconds: watch.stop() as f64 / f64::from(self.rounds),
            ..self
        }
    }
}

/// Measures a stretch of work: its time, and for the profiler its instructions.
struct Watch(Instant);

impl Watch {
    fn start() -> Self {
        let start = Instant::now();
        mark::start();
        Self(start)
    }

    /// Nanoseconds since the start.
    fn stop(self) -> u128 {
        mark::stop();
        self.0.elapsed().as_nanos()
    }
}

/// Where in requests the time is spent, by the CPU's time stamp counter.
#[derive(Default)]
struct Stamps {
    start: u64,
    body: u64,
    end: u64,
}

impl Stamps {
    fn request(&mut self, user: &'static Domain, work: impl FnOnce()) -> Result<()> {
        let called = now();
        let (mut entered, mut done) = (0, 0);
        request(user, || {
            entered = now();
            work();
            done = now();
        })?;
        self.start += entered - called;
        self.body += done - entered;
        self.end += now() - done;
        Ok(())
    }

    /// The parts of the requests' mean time.
    fn parts(&self, nanoseconds: f64) -> Parts {
        let all = (self.start + self.body + self.end) as f64;
        let share = |part: u64| nanoseconds * part as f64 / all;
        Parts {
            start: share(self.start),
            body: share(self.body),
            end: share(self.end),
        }
    }
}

fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux allows it in user space.
    unsafe { _rdtsc() }
}

/// The key-value server: each operation is a request for its key's domain, or without VMSRS takes its table's lock.
fn key_value(app: &'static App, operations: u32) -> Result<()> {
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
            phase(|| {
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

/// Nanoseconds from an error in a request that has written to `pages` pages until the thread is in its next request.
fn error_to_next_request(user: &'static Domain, block: *mut u8, pages: usize) -> Result<u64> {
    let clock = Instant::now();
    // A failed request leaves its caller's locals undefined, so these are statics.
    static STRUCK: AtomicU64 = AtomicU64::new(0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let failed = user.run(|_| {
        write(block, pages);
        STRUCK.store(clock.elapsed().as_nanos() as u64, Relaxed);
        mark::start();
        // SAFETY: this faults on purpose: recovery from it is what is measured.
        unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
        Ok::<_, vmsrs::Error>(())
    });
    ensure!(failed.is_err(), "a write to address 16 failed no request");
    request(user, || {
        mark::stop();
        NEXT.store(clock.elapsed().as_nanos() as u64, Relaxed);
    })?;
    NEXT.load(Relaxed)
        .checked_sub(STRUCK.load(Relaxed))
        .context("the clock went backwards")
}

fn request(user: &'static Domain, work: impl FnOnce()) -> Result<()> {
    user.run(|_| {
        work();
        Ok::<_, vmsrs::Error>(())
    })
    .map_err(|error| anyhow!("an ordinary request failed: {error:?}"))
}

/// Waits until the host has sealed everything that was committed before.
fn seal(user: &'static Domain) -> Result<()> {
    let options = Options {
        seal: true,
        ..Options::default()
    };
    user.run_with(&options, |request| {
        // A request that writes nothing would not wait.
        request.set_root(request.root::<u8>())
    })
    .map_err(|error| anyhow!("waiting for the host to seal failed: {error:?}"))
}

/// Reads a byte.
fn read(block: *mut u8, _: usize) {
    // SAFETY: the callers' blocks are mapped.
    black_box(unsafe { block.read_volatile() });
}

/// Writes a byte to each of `pages` pages.
fn write(block: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: the callers' blocks have `PAGES` pages, which they may write.
        unsafe { block.add(page * PAGE).write_volatile(page as u8) };
    }
}
