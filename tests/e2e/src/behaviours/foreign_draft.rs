//! Where the CPU has protection keys, only the threads of a request can access its drafts.

use std::arch::asm;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Barrier, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, Request, RunError, Step, Task};
use vmsrs_bed::cpu::has_protection_keys;

use crate::fault::{
    Fault, SEGV_PKUERR, load, load_instruction, store, store_instruction, try_load, try_store,
    wild_write,
};
use crate::host::Guest;
use crate::steps;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "foreign_draft_is_inaccessible",
    machine: Machine::Usual,
    steps: &[
        ("keys", keys),
        ("strays", strays),
        ("look", look),
        ("fails", fails),
        ("key is closed", key_is_closed),
        ("keys differ", keys_differ),
        ("off", off),
    ],
    host,
};

/// What the owner's domain holds before and after its request.
const BEFORE: u8 = 3;
const AFTER: u8 = 5;
/// What stray writes store.
const STRAY: u8 = 99;

fn host(guest: &mut Guest) -> Result<()> {
    if guest.run("keys", "")?.trim() != "true" {
        ensure!(
            !has_protection_keys()?,
            "the host's CPU has protection keys, the guest's does not"
        );
        eprintln!("skipped: this CPU has no protection keys (pku); drafts are not protected here");
        return Ok(());
    }
    guest.run_steps(&["strays"])?;
    for incident in guest.run("fails", "")?.lines() {
        let facts = guest.incident(incident)?;
        ensure!(
            facts["kind"] == "foreign-draft",
            "not the kind of the error: {facts}"
        );
    }
    guest.run_steps(&["key is closed", "keys differ", "off"])
}

fn keys(_: &str) -> Result<()> {
    println!("{}", has_protection_keys()?);
    Ok(())
}

/// The owner's and another user's domain, each with a block of two bytes.
fn open() -> Result<(&'static Domain, &'static Domain)> {
    // SAFETY: no request here shares its locals with other threads.
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

/// Calls `probe` with the address of a byte in the draft of another thread's running request. Returns its result and
/// the byte that the owner saw afterwards, and checks that the owner's commit succeeds.
fn in_flight<T>(
    owner: &'static Domain,
    probe: impl FnOnce(*mut u8) -> Result<T>,
) -> Result<(T, u8)> {
    // The answer to a batch unmaps its pages everywhere. An access to a draft that is not mapped reaches the driver, which
    // refuses it for another reason.
    owner.app().flush()?;
    let (drafted, is_drafted) = mpsc::channel();
    let (finish, may_finish) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        owner.run(|_| {
            let block = owner.root_address();
            // SAFETY: the request holds the domain, and the block lives in it.
            unsafe { block.write_volatile(AFTER) };
            // Neither fails before the probe has returned.
            let _ = drafted.send(block.expose_provenance());
            let _ = may_finish.recv();
            // SAFETY: as above.
            let seen = unsafe {
                block.add(1).write_volatile(AFTER);
                block.read_volatile()
            };
            Ok::<_, Error>(seen)
        })
    });
    let block =
        std::ptr::with_exposed_provenance_mut::<u8>(is_drafted.recv().context("the draft")?);
    let result = probe(block);
    drop(finish);
    let seen = thread.join().ok().context("the owner panicked")??;
    // SAFETY: committed, and readable by the whole process.
    let committed = unsafe { [block.read_volatile(), block.add(1).read_volatile()] };
    ensure!(
        committed == [seen, AFTER],
        "the owner committed {committed:?}"
    );
    Ok((result?, seen))
}

/// Stores, loads and system calls that would write are all refused.
fn expect_inaccessible(who: &str, target: *mut u8) -> Result<()> {
    let check = |what: &str, fault: Option<Fault>, instruction: u64| -> Result<()> {
        let Some(fault) = fault else {
            bail!("{who}: the {what} was not stopped")
        };
        let expected = Fault {
            signal: libc::SIGSEGV,
            code: SEGV_PKUERR,
            address: target as u64,
            instruction,
        };
        ensure!(
            fault == expected,
            "{who}: the {what} got {fault:x?}, expected {expected:x?}"
        );
        Ok(())
    };
    // SAFETY: the target is this test's own draft.
    let stored = unsafe { try_store(target, STRAY) };
    check("store", stored.err(), store_instruction())?;
    // SAFETY: as above.
    let loaded = unsafe { try_load(target) };
    check("load", loaded.err(), load_instruction())?;
    ensure!(!kernel_writes(target)?, "{who}: read(2) wrote");
    Ok(())
}

/// Makes the kernel write a zero there on behalf of this thread; false if it refuses with EFAULT.
pub(super) fn kernel_writes(target: *mut u8) -> Result<bool> {
    let zero = File::open("/dev/zero")?;
    // SAFETY: nothing but this test's own draft lies there; the kernel checks the address itself.
    let got = unsafe { libc::read(zero.as_raw_fd(), target.cast(), 1) };
    let error = std::io::Error::last_os_error();
    match got {
        1 => Ok(true),
        -1 if error.raw_os_error() == Some(libc::EFAULT) => Ok(false),
        _ => bail!("read returned {got}, {error}"),
    }
}

fn strays(_: &str) -> Result<()> {
    // A thread that is older than the app and unknown to the library.
    let (give_target, target) = mpsc::channel::<usize>();
    let stranger = thread::spawn(move || {
        let target = std::ptr::with_exposed_provenance_mut::<u8>(target.recv()?);
        expect_inaccessible("a thread that is older than the app", target)
    });
    let (owner, other) = open()?;
    let (_, seen) = in_flight(owner, |target| {
        give_target.send(target.expose_provenance())?;
        stranger.join().ok().context("the stranger panicked")??;

        expect_inaccessible("a thread without a request", target)?;

        let address = target.expose_provenance();
        let newcomer = thread::spawn(move || {
            let target = std::ptr::with_exposed_provenance_mut::<u8>(address);
            expect_inaccessible("a new thread", target)
        });
        newcomer.join().ok().context("the newcomer panicked")??;

        let mut outcome = Ok(());
        other.run(|_| {
            let mine = other.root_address();
            // SAFETY: the request holds the domain, and the block lives in it.
            unsafe { mine.write_volatile(AFTER) };
            outcome = expect_inaccessible("another request", target);
            // SAFETY: as above.
            unsafe { mine.add(1).write_volatile(AFTER) };
            Ok::<_, Error>(())
        })?;
        outcome?;

        // Another process sees the committed version.
        let output = steps::command(BEHAVIOUR.name, "look", "")?.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && text.trim() == BEFORE.to_string(),
            "another process: {} {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })?;
    ensure!(seen == AFTER, "the owner's draft has changed to {seen}");
    Ok(())
}

/// Runs in another process while the owner's request is running.
fn look(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("foreign-draft") }?;
    let block = app.domain("owner")?.root_address();
    // SAFETY: the block is in the domain; drafts of other processes are not visible.
    println!("{}", unsafe { block.read_volatile() });
    Ok(())
}

fn fails(_: &str) -> Result<()> {
    let (owner, other) = open()?;
    let stray_store = |target| {
        // SAFETY: faults, which ends the request.
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
                bail!("the stray {what} was not stopped")
            };
            ensure!(
                failure.kind == Kind::ForeignDraft && failure.address == target as u64,
                "{failure}"
            );
            Ok(failure)
        })?;
        ensure!(seen == AFTER, "the owner's draft has changed to {seen}");
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

/// Makes a draft.
fn write(request: &Request) -> Result<(), Error> {
    request.set_root(request.root::<u8>())
}

/// However a request ends, its key is closed again.
fn key_is_closed(_: &str) -> Result<()> {
    let (_, other) = open()?;
    let outside = pkru();
    let expect = |what: &str| -> Result<()> {
        let now = pkru();
        ensure!(
            now == outside,
            "after {what}: {now:#x}, expected {outside:#x}"
        );
        Ok(())
    };
    let mut inside = outside;
    other.run(|request| {
        // It is opened with the first draft, and closed when there is none any more.
        for _ in 0..2 {
            assert_eq!(pkru(), outside, "before a write");
            write(request)?;
            inside = pkru();
            request.commit(false)?;
        }
        assert_eq!(pkru(), outside, "after a commit on the way");
        write(request)?;
        assert_eq!(pkru(), inside, "the request's key has changed");
        // A task created here gets a key as well, and this request keeps its own.
        let task = Task::new(other, Options::default())?;
        let now = pkru();
        assert_eq!(now, inside, "{now:#x}, expected {inside:#x}");
        drop(task);
        Ok::<_, Error>(())
    })?;
    let opened = outside & !inside;
    ensure!(
        inside & !outside == 0 && opened.count_ones() == 1,
        "not exactly one more key is open in a request: {inside:#x}, outside {outside:#x}"
    );
    expect("a commit")?;
    let outcome = other.run(|request| {
        request.defer(move || assert_eq!(pkru(), outside, "a defer"))?;
        write(request)?;
        Err::<(), _>(Error::NotHeld)
    });
    ensure!(matches!(outcome, Err(RunError::GivenUp(_))), "{outcome:?}");
    expect("giving up")?;
    let bodies: [(&str, fn()); 2] = [
        ("a signal", wild_write),
        ("a panic", || panic!("on purpose")),
    ];
    for (what, body) in bodies {
        let outcome = other.run(|request| {
            request.defer(move || assert_eq!(pkru(), outside, "a defer"))?;
            write(request)?;
            body();
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = outcome else {
            bail!("{what} did not fail the request")
        };
        ensure!(failure.defers_failed == 0, "{what}: a defer failed");
        expect(what)?;
    }
    let outcome = other.run(|request| -> Result<(), Error> {
        write(request)?;
        request.fail("on purpose")
    });
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    expect("a failed invariant")
}

/// Running requests have different keys as long as there are enough, however many threads there are.
fn keys_differ(_: &str) -> Result<()> {
    // All keys that Linux allocates, but for those of hot domains.
    const KEYS: usize = 10;
    const TASKS: usize = 3;
    const BUSY: usize = KEYS - TASKS;
    // Idle threads for each busy one, which have run requests before.
    const IDLE: usize = 3;
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("foreign-draft") }?;
    let outside = pkru();
    let opened = move || outside & !pkru();
    let step = |task: &mut Task| -> Result<u32> {
        let mut key = 0;
        task.step(|request| {
            write(request).expect("a draft");
            key = opened();
            Step::<()>::Suspend
        })?;
        Ok(key)
    };
    let mut tasks = (0..TASKS)
        .map(|number| {
            let domain = app.domain(format!("suspended {number}"))?;
            let mut task = Task::new(domain, Options::default())?;
            let key = step(&mut task)?;
            Ok((task, key))
        })
        .collect::<Result<Vec<_>>>()?;
    let (known, running, over) = (
        Barrier::new(BUSY * (1 + IDLE)),
        Barrier::new(BUSY + 1),
        Barrier::new(BUSY * (1 + IDLE) + 1),
    );
    let (busy, further) = thread::scope(|scope| -> Result<_> {
        let threads: Vec<_> = (0..BUSY * (1 + IDLE))
            .map(|number| {
                let (known, running, over) = (&known, &running, &over);
                scope.spawn(move || -> Result<u32> {
                    let domain = app.domain(format!("thread {number}"))?;
                    domain.run(|_| Ok::<_, Error>(()))?;
                    known.wait();
                    let mut key = 0;
                    if number % (1 + IDLE) == 0 {
                        domain.run(|request| {
                            write(request)?;
                            key = opened();
                            running.wait();
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
        running.wait();
        // One request more than there are keys works as well.
        let further = app.domain("one more")?.run(|request| {
            write(request)?;
            Ok::<_, Error>(opened())
        });
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
        "{KEYS} running requests have {} keys: {keys:x?}",
        distinct.len()
    );
    ensure!(
        keys.contains(&further) && further.count_ones() == 1,
        "a further request has {further:x} instead of a key of the others"
    );
    for (task, key) in &mut tasks {
        let resumed = step(task)?;
        ensure!(
            resumed == *key,
            "a task with key {key:x} has {resumed:x} when it is resumed"
        );
    }
    Ok(())
}

/// Without keys nothing stops the stray write.
fn off(_: &str) -> Result<()> {
    // SAFETY: the process has only one thread.
    unsafe { std::env::set_var("VMSRS_PKU", "off") };
    let (owner, _) = open()?;
    let (stored, seen) = in_flight(owner, |target| {
        // SAFETY: the target is this test's own draft.
        Ok(unsafe { try_store(target, STRAY) })
    })?;
    ensure!(stored.is_ok() && seen == STRAY, "{stored:?}, {seen}");
    Ok(())
}
