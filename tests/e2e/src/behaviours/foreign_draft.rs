//! A draft is out of reach for every thread but its request's own, where the CPU has protection keys.

use std::arch::asm;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Barrier, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, RunError, Step, Task};
use vmsrs_bed::cpu::has_protection_keys;

use crate::fault::{Fault, load, load_instruction, store, store_instruction, try_load, try_store};
use crate::host::Guest;
use crate::{Behaviour, Machine};

const NAME: &str = "foreign_draft_is_inaccessible";

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: NAME,
    machine: Machine::Usual,
    steps: &[
        ("keys", keys),
        ("strays", strays),
        ("look", look),
        ("fails", fails),
        ("ways out", ways_out),
        ("own keys", own_keys),
        ("off", off),
    ],
    host,
};

/// `si_code` of an access that a protection key forbids.
const SEGV_PKUERR: i32 = 4;
/// What the owner's domain holds before and after its request.
const BEFORE: u8 = 3;
const AFTER: u8 = 5;
/// What strays write.
const STRAY: u8 = 99;

fn host(guest: &mut Guest) -> Result<()> {
    if guest.run("keys", "")?.trim() != "true" {
        ensure!(
            !has_protection_keys()?,
            "the host's CPU has protection keys, the guest's has none"
        );
        eprintln!("skipped: this CPU has no protection keys (pku); drafts are not protected here");
        return Ok(());
    }
    guest.run("strays", "")?;
    for incident in guest.run("fails", "")?.lines() {
        let facts = guest.incident(incident)?;
        ensure!(
            facts["kind"] == "foreign-draft",
            "the host knows the kind: {facts}"
        );
    }
    guest.run("ways out", "")?;
    guest.run("own keys", "")?;
    guest.run("off", "").map(drop)
}

fn keys(_: &str) -> Result<()> {
    println!("{}", has_protection_keys()?);
    Ok(())
}

/// The owner's and another user's domain; both have a block of two bytes.
fn open() -> Result<(&'static Domain, &'static Domain)> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("foreign-draft") }?;
    let (owner, other) = (app.domain("owner")?, app.domain("other")?);
    for domain in [owner, other] {
        domain.run(|request| {
            let block = request.alloc([BEFORE; 2])?;
            request.set_root(Some(block.into()))
        })?;
    }
    Ok((owner, other))
}

/// Calls `probe` with the address of a byte of a draft in flight, of another thread's request.
/// Returns what the probe said and what the owner saw afterwards, and checks that the owner commits.
fn in_flight<T>(
    owner: &'static Domain,
    probe: impl FnOnce(*mut u8) -> Result<T>,
) -> Result<(T, u8)> {
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        owner.run(|_| {
            let block = owner.root_address();
            // SAFETY: the request holds the domain, and the block lives in it.
            unsafe { block.write_volatile(AFTER) };
            // The receivers are there until the probe is over, whatever it says.
            let _ = tell.send(block.expose_provenance());
            let _ = gone.recv();
            // SAFETY: as above.
            let seen = unsafe {
                block.add(1).write_volatile(AFTER);
                block.read_volatile()
            };
            Ok::<_, Error>(seen)
        })
    });
    let block = std::ptr::with_exposed_provenance_mut::<u8>(told.recv().context("the draft")?);
    let probed = probe(block);
    drop(go);
    let seen = thread.join().ok().context("the owner panicked")??;
    // SAFETY: committed, and readable by the whole process.
    let committed = unsafe { [block.read_volatile(), block.add(1).read_volatile()] };
    ensure!(
        committed == [seen, AFTER],
        "the owner committed {committed:?}"
    );
    Ok((probed?, seen))
}

/// A store, a load and a system call that would write are all refused.
fn expect_out_of_reach(who: &str, target: *mut u8) -> Result<()> {
    let check = |what: &str, fault: Option<Fault>, instruction: u64| -> Result<()> {
        let Some(fault) = fault else {
            bail!("{who}: the {what} happened")
        };
        let expected = Fault {
            signal: libc::SIGSEGV,
            code: SEGV_PKUERR,
            address: target as u64,
            instruction,
        };
        ensure!(fault == expected, "{who}: the {what} got {fault:x?}");
        Ok(())
    };
    // SAFETY: nothing but this test's own draft lies there.
    let stored = unsafe { try_store(target, STRAY) };
    check("store", stored.err(), store_instruction())?;
    // SAFETY: as above.
    let loaded = unsafe { try_load(target) };
    check("load", loaded.err(), load_instruction())?;
    ensure!(!kernel_writes(target)?, "{who}: read(2) wrote");
    Ok(())
}

/// Whether the kernel writes a zero there on behalf of this thread; EFAULT is the only other answer.
pub(super) fn kernel_writes(target: *mut u8) -> Result<bool> {
    let zero = File::open("/dev/zero")?;
    // SAFETY: nothing but this test's own draft lies there; the kernel checks the address itself.
    let got = unsafe { libc::read(zero.as_raw_fd(), target.cast(), 1) };
    let error = std::io::Error::last_os_error();
    match got {
        1 => Ok(true),
        -1 if error.raw_os_error() == Some(libc::EFAULT) => Ok(false),
        _ => bail!("read gave {got}, {error}"),
    }
}

fn strays(_: &str) -> Result<()> {
    // A thread that was there before the app, so that the library never heard of it.
    let (ask, asked) = mpsc::channel::<usize>();
    let stranger = thread::spawn(move || {
        let target = std::ptr::with_exposed_provenance_mut::<u8>(asked.recv()?);
        expect_out_of_reach("a thread that is older than the app", target)
    });
    let (owner, other) = open()?;
    let (_, seen) = in_flight(owner, |target| {
        ask.send(target.expose_provenance())?;
        stranger.join().ok().context("the stranger panicked")??;

        expect_out_of_reach("a thread without a request", target)?;

        let address = target.expose_provenance();
        let newcomer = thread::spawn(move || {
            let target = std::ptr::with_exposed_provenance_mut::<u8>(address);
            expect_out_of_reach("a new thread", target)
        });
        newcomer.join().ok().context("the newcomer panicked")??;

        let mut outcome = Ok(());
        other.run(|_| {
            let mine = other.root_address();
            // SAFETY: the request holds the domain, and the block lives in it.
            unsafe { mine.write_volatile(AFTER) };
            outcome = expect_out_of_reach("another request", target);
            // SAFETY: as above.
            unsafe { mine.add(1).write_volatile(AFTER) };
            Ok::<_, Error>(())
        })?;
        outcome?;

        // Another process has the committed version before its eyes.
        let output = Command::new(std::env::current_exe()?)
            .args(["guest", NAME, "look", ""])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && text.trim() == BEFORE.to_string(),
            "another process: {} {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })?;
    ensure!(seen == AFTER, "the owner's draft was unharmed, not {seen}");
    Ok(())
}

/// Another process, while the owner's request is in flight.
fn look(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("foreign-draft") }?;
    let block = app.domain("owner")?.root_address();
    // SAFETY: the block lives in the domain; others' requests are not seen.
    println!("{}", unsafe { block.read_volatile() });
    Ok(())
}

fn fails(_: &str) -> Result<()> {
    let (owner, other) = open()?;
    let stray_store = |target| {
        // SAFETY: stopped, which ends the request.
        unsafe { store(target, STRAY) };
    };
    let stray_load = |target: *mut u8| {
        // SAFETY: as above.
        unsafe { load(target) };
    };
    let strays: [(&str, &dyn Fn(*mut u8)); 2] = [("store", &stray_store), ("load", &stray_load)];
    for (what, stray) in strays {
        let (failure, seen) = in_flight(owner, |target| {
            let outcome = other.run(|_| {
                stray(target);
                Ok::<_, Error>(())
            });
            let Err(RunError::Failed(failure)) = outcome else {
                bail!("the stray {what} happened")
            };
            ensure!(
                failure.kind == Kind::ForeignDraft && failure.address == target as u64,
                "{failure}"
            );
            Ok(failure)
        })?;
        ensure!(seen == AFTER, "the owner's draft was unharmed, not {seen}");
        println!("{}", failure.incident);
    }
    Ok(())
}

/// The calling thread's PKRU.
pub(super) fn pkru() -> u32 {
    let pkru;
    // SAFETY: the CPU has protection keys, or this step would not run.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _) };
    pkru
}

/// Whatever way a request ends, its key is closed again.
fn ways_out(_: &str) -> Result<()> {
    let (_, other) = open()?;
    let outside = pkru();
    let expect = |what: &str| -> Result<()> {
        let now = pkru();
        ensure!(now == outside, "{what}: {now:#x}, not {outside:#x}");
        Ok(())
    };
    let mut inside = outside;
    other.run(|_| {
        inside = pkru();
        // A task that is made here has a key as well, and this request keeps its own.
        let task = Task::new(other, Options::default())?;
        let now = pkru();
        assert_eq!(now, inside, "{now:#x}, not {inside:#x}");
        drop(task);
        Ok::<_, Error>(())
    })?;
    let opened = outside & !inside;
    ensure!(
        inside & !outside == 0 && opened.count_ones() == 1,
        "one key more is open in a request: {inside:#x}, not {outside:#x}"
    );
    expect("the good end")?;
    let given_up = other.run(|request| {
        request.defer(move || assert_eq!(pkru(), outside, "a defer"))?;
        Err::<(), _>(Error::NotHeld)
    });
    ensure!(matches!(given_up, Err(RunError::GivenUp(_))), "given up");
    expect("giving up")?;
    let bodies: [(&str, fn()); 2] = [
        // SAFETY: faults, which ends the request.
        ("a signal", || unsafe { store(std::ptr::null_mut(), 1) }),
        ("a panic", || panic!("as wanted")),
    ];
    for (what, body) in bodies {
        let outcome = other.run(|request| {
            request.defer(move || assert_eq!(pkru(), outside, "a defer"))?;
            body();
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = outcome else {
            bail!("{what} did not fail the request")
        };
        ensure!(failure.defers_failed == 0, "{what}: in a defer");
        expect(what)?;
    }
    let outcome = other.run(|request| -> Result<(), Error> { request.fail("as wanted") });
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    expect("a failed invariant")
}

/// Requests in flight have a key each as long as there are enough, however many threads there are.
fn own_keys(_: &str) -> Result<()> {
    // All that Linux has to give.
    const KEYS: usize = 15;
    const TASKS: usize = 3;
    const BUSY: usize = KEYS - TASKS;
    // For each that is busy, so many that have had requests before and wait for others.
    const IDLE: usize = 3;
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("foreign-draft") }?;
    let outside = pkru();
    let opened = move || outside & !pkru();
    let begin = |task: &mut Task| -> Result<u32> {
        let mut key = 0;
        task.step(|_| {
            key = opened();
            Step::<()>::Suspend
        })?;
        Ok(key)
    };
    let mut tasks = (0..TASKS)
        .map(|number| {
            let domain = app.domain(format!("suspended {number}"))?;
            let mut task = Task::new(domain, Options::default())?;
            let key = begin(&mut task)?;
            Ok((task, key))
        })
        .collect::<Result<Vec<_>>>()?;
    let (known, in_flight, over) = (
        Barrier::new(BUSY * (1 + IDLE)),
        Barrier::new(BUSY + 1),
        Barrier::new(BUSY * (1 + IDLE) + 1),
    );
    let (busy, further) = thread::scope(|scope| -> Result<_> {
        let threads: Vec<_> = (0..BUSY * (1 + IDLE))
            .map(|number| {
                let (known, in_flight, over) = (&known, &in_flight, &over);
                scope.spawn(move || -> Result<u32> {
                    let domain = app.domain(format!("thread {number}"))?;
                    domain.run(|_| Ok::<_, Error>(()))?;
                    known.wait();
                    let mut key = 0;
                    if number % (1 + IDLE) == 0 {
                        domain.run(|_| {
                            key = opened();
                            in_flight.wait();
                            over.wait();
                            Ok::<_, Error>(())
                        })?;
                    } else {
                        over.wait();
                    }
                    Ok(key)
                })
            })
            .collect();
        in_flight.wait();
        // One request more than keys works as well.
        let further = app.domain("one more")?.run(|_| Ok::<_, Error>(opened()));
        over.wait();
        let keys = threads.into_iter().map(|thread| {
            let key = thread.join().ok().context("a thread panicked")??;
            Ok(key)
        });
        Ok((keys.collect::<Result<Vec<_>>>()?, further?))
    })?;
    let suspended = tasks.iter().map(|&(_, key)| key);
    let keys: Vec<_> = busy
        .into_iter()
        .filter(|&key| key != 0)
        .chain(suspended)
        .collect();
    let mut distinct = keys.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(
        keys.len() == KEYS && distinct.len() == KEYS,
        "{KEYS} requests in flight have {} keys: {keys:x?}",
        distinct.len()
    );
    ensure!(
        keys.contains(&further) && further.count_ones() == 1,
        "a further request shares a key, not {further:x}"
    );
    for (task, key) in &mut tasks {
        let resumed = begin(task)?;
        ensure!(
            resumed == *key,
            "a task keeps its key {key:x}, not {resumed:x}"
        );
    }
    Ok(())
}

/// Without keys, nothing stops the stray: it is the key that does.
fn off(_: &str) -> Result<()> {
    // SAFETY: the process has one thread yet.
    unsafe { std::env::set_var("VMSRS_PKU", "off") };
    let (owner, _) = open()?;
    let (stored, seen) = in_flight(owner, |target| {
        // SAFETY: nothing but this test's own draft lies there.
        Ok(unsafe { try_store(target, STRAY) })
    })?;
    ensure!(stored.is_ok() && seen == STRAY, "{stored:?}, {seen}");
    Ok(())
}
