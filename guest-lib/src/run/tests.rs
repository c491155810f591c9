//! The short way out of a request, and what a request costs in instructions: counted, so that the verdict is the
//! same on every machine.

use crate::mock::{MockBackend, list_written};
use crate::state::domain::Domain;
use crate::thread;
use crate::{Error, Kind, Options, Request, RunError};
use std::cell::Cell;
use std::ffi::c_void;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::shared::{KEY_WRITES_OVER, LOCK_WAITERS, ThreadControl};

type Work = fn(&Request, &'static Domain, &mut ThreadControl);

/// Runs something in a request that has one domain and writes nothing.
fn run(domain: &'static Domain, work: Work) -> Result<(), RunError<Error>> {
    domain.run(|request| {
        let control = thread::current().unwrap().control();
        // SAFETY: this thread's control block, which nothing else uses meanwhile.
        work(request, domain, unsafe { &mut *control.as_ptr() });
        Ok(())
    })
}

#[test]
fn damage_by_a_plain_request_is_found() {
    let app = MockBackend::app("quiet damage", |hooks| hooks.protects = true);
    let domain = app.domain("one").unwrap();
    let damages: [Work; 10] = [
        |_, _, control| control.key += 1,
        |_, _, control| control.tag = 0,
        |_, _, control| control.tag += 1,
        |_, _, control| control.held_count = 0,
        |_, _, control| control.held_count = 2,
        |_, _, control| control.held[0] += 1,
        |_, _, control| *control = bytemuck::Zeroable::zeroed(),
        |_, domain, _| domain.lock_word().store(0, Ordering::Relaxed),
        |_, domain, _| {
            domain.lock_word().fetch_add(1, Ordering::Relaxed);
        },
        |_, _, _| {
            let thread = thread::current().unwrap();
            thread.state().latch.take(thread.number(), |_| false);
        },
    ];
    for damage in damages {
        // The same where it has written a page.
        for written in [0, 1] {
            let outcome = domain.run(|request| {
                list_written(&vec![domain.first().page; written]);
                let control = thread::current().unwrap().control();
                // SAFETY: this thread's control block, which nothing else uses meanwhile.
                damage(request, domain, unsafe { &mut *control.as_ptr() });
                Ok::<_, Error>(())
            });
            let Err(RunError::Failed(failure)) = outcome else {
                panic!("not found");
            };
            assert_eq!(failure.kind, Kind::Memory, "{failure}");
            domain.lock_word().store(0, Ordering::Relaxed);
            run(domain, |_, _, _| ()).unwrap();
            assert_eq!(domain.lock_word().load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn request_that_wrote_is_committed_once_and_leaves_its_thread_at_rest() {
    let commits = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&commits);
    let app = MockBackend::app("plain writes", |hooks| {
        hooks.protects = true;
        hooks.commit = Box::new(move |_, _| {
            seen.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    });
    let domain = app.domain("one").unwrap();
    domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    let before = commits.load(Ordering::Relaxed);
    // The second time somebody waits for the domain.
    for (waiters, times) in [(0, 1), (LOCK_WAITERS, 2)] {
        let outcome = domain.run(|_| {
            list_written(&[domain.first().page]);
            domain.lock_word().fetch_or(waiters, Ordering::Relaxed);
            Ok::<_, Error>(())
        });
        outcome.unwrap();
        assert_eq!(commits.load(Ordering::Relaxed), before + times);
        assert_eq!(domain.lock_word().load(Ordering::Relaxed), 0);
        assert!(thread::of(app).unwrap().is_at_rest());
    }
}

#[test]
fn what_is_audited_is_all_that_is_written() {
    let ends = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&ends);
    let app = MockBackend::app("over", |hooks| {
        hooks.protects = true;
        hooks.commit = Box::new(move |_, _| {
            let control = thread::current().unwrap().control();
            // SAFETY: this thread's control block.
            let key = unsafe { (*control.as_ptr()).key };
            seen.fetch_add(u32::from(key == KEY_WRITES_OVER), Ordering::Relaxed);
            Ok(())
        });
    });
    let domain = app.domain("one").unwrap();
    domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    for times in 1..=2 {
        let writing = domain.run(|_| {
            let control = thread::current().unwrap().control();
            // SAFETY: as above.
            let key = unsafe { (*control.as_ptr()).key };
            list_written(&[domain.first().page]);
            Ok::<_, Error>(key != KEY_WRITES_OVER)
        });
        assert!(writing.unwrap());
        assert_eq!(ends.load(Ordering::Relaxed), times);
    }
}

#[test]
fn unusual_request_leaves_its_thread_at_rest() {
    let app = MockBackend::app("unusual", |hooks| hooks.protects = true);
    let domain = app.domain("one").unwrap();
    let unusual: [Work; 6] = [
        |_, _, _| (),
        |request, _, _| request.defer(|| panic!("it is committed")).unwrap(),
        |request, _, _| {
            request.ticket().unwrap();
        },
        |request, _, _| {
            let ticket = request.ticket().unwrap();
            let joined = std::thread::spawn(move || ticket.join(|_| ()));
            joined.join().unwrap().unwrap();
        },
        |_, domain, _| {
            domain.lock_word().fetch_or(LOCK_WAITERS, Ordering::Relaxed);
        },
        |request, _, _| request.fail("this request fails"),
    ];
    for work in unusual {
        let outcome = run(domain, work);
        if let Err(error) = &outcome {
            assert!(matches!(error, RunError::Failed(_)), "{error:?}");
        }
        let thread = thread::of(app).unwrap();
        assert!(thread.is_at_rest());
        assert_eq!(domain.lock_word().load(Ordering::Relaxed), 0);
        run(domain, |_, _, _| {
            let thread = thread::current().unwrap();
            assert!(thread.plain_tag(thread.domain().unwrap()).is_some());
        })
        .unwrap();
        assert!(thread.is_at_rest());
    }
}

/// Most instructions of a request that does nothing, without protection keys.
const EMPTY_MAX: u64 = 200;

/// Most instructions of a request that writes one page, in the process and without protection keys; the order that the compiler
/// chooses makes a difference of some.
const WRITES_MAX: u64 = 710;

/// Most instructions for each block of a page of small ones that was written.
const BLOCK_MAX: u64 = 45;

/// The same for each chunk of a slab that is in use, and for each that is not.
const CHUNKS_MAX: [u64; 2] = [75, 125];

/// Blocks, or chunks, that a request takes and gives back.
const PAIRS: usize = 16;

/// Most instructions by which such a request takes longer if the page is one of a block of 8 GiB.
const HUGE_MAX: u64 = 350;

/// Bytes of a small block, and of the memory that it takes.
const SMALL: [usize; 2] = [100, 128];

/// Small blocks on a page.
const A_PAGE: usize = PAGE_SIZE as usize / SMALL[1];

/// The process that is counted has this in its environment.
const COUNTED: &str = "VMSRS_COUNTED";

fn request(domain: &'static Domain, work: impl FnOnce()) {
    let outcome = domain.run(|_| {
        work();
        Ok::<_, Error>(())
    });
    outcome.unwrap();
}

/// Stops the traced process: what comes until the next stop is counted.
fn mark() {
    // SAFETY: sends this process a signal.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// The process that is counted, one mark before and after each thing.
#[expect(clippy::too_many_lines, reason = "a list of things")]
fn counted() {
    // SAFETY: the parent traces this process, if it may.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        return;
    }
    let app = MockBackend::app("counted", |hooks| hooks.protects = true);
    let domain = app.domain("one").unwrap();
    let mut block = 0;
    request(domain, || {
        block = domain.allocate(100_000, 16).unwrap().as_ptr() as u64;
    });
    let mut blocks = Vec::new();
    request(domain, || {
        let allocate = |_| domain.allocate(SMALL[0], 16).unwrap().as_ptr() as u64;
        blocks = (0..8 * A_PAGE).map(allocate).collect();
    });
    // As large as only a domain of its own can have it.
    let other = app.domain("two").unwrap();
    let (mut beside, mut huge) = (0, 0);
    request(other, || {
        beside = other.allocate(100_000, 16).unwrap().as_ptr() as u64;
        huge = other.allocate(1 << 33, 16).unwrap().as_ptr() as u64;
    });
    // The thread is looked at as its first requests begin.
    (0..100).for_each(|_| request(domain, || ()));
    let page = |address: u64| u32::try_from((address - app.base()) / u64::from(PAGE_SIZE)).unwrap();
    // One in the middle of the block, and one full of small ones.
    let large = page(block) + 2;
    let is_full = |page_of: &u64| {
        let on_page = |block: &&u64| page(**block) == page(*page_of);
        blocks.iter().filter(on_page).count() == A_PAGE
    };
    let small = page(*blocks.iter().find(|block| is_full(block)).unwrap());
    let beside = page(beside) + 2;
    let middle = page(huge + (1 << 32));
    let write = |page: u32, times: usize| (0..times).for_each(|_| list_written(&[page]));
    let slab = Cell::new(None);
    request(domain, || {
        let (bytes, chunks) = (SMALL[1], 8 * A_PAGE);
        let first = domain.allocate_slab(bytes, chunks, 8).unwrap();
        for number in 0..chunks / 2 {
            // SAFETY: in the slab.
            let chunk = unsafe { first.add(number * bytes) };
            domain.take_chunk(chunk, SMALL[0]).unwrap();
        }
        slab.set(Some(first));
    });
    let slab = slab.get().unwrap();
    let chunks = page(slab.as_ptr() as u64);
    let [in_use, not_in_use] = [chunks + 2, chunks + 6];
    let usual = Options::default();
    let keep_arena = Options {
        keep_arena: true,
        ..Options::default()
    };
    let with = |options: &Options, work: &dyn Fn(&Request)| {
        domain
            .run_with(options, |request| {
                work(request);
                Ok::<_, Error>(())
            })
            .unwrap();
    };
    let number = Cell::new(0u64);
    let after = |request: &Request, times: usize| {
        unsafe extern "C-unwind" fn nothing(_: *mut c_void) {}
        (0..times).for_each(|_| request.on_commit_raw(nothing, ptr::null_mut()).unwrap());
    };
    let keep = |request: &Request, times: usize| {
        // SAFETY: the variable above.
        (0..times).for_each(|_| unsafe { request.keep(number.as_ptr()) }.unwrap());
    };
    let take = |request: &Request, times: usize| {
        (0..times).for_each(|_| assert!(request.arena().allocate(100, 16).is_some()));
    };
    let input = |request: &Request| assert!(request.arena().input(&[1; 100]).is_some());
    let things: [&dyn Fn(); 21] = [
        &|| (),
        &|| request(domain, || ()),
        &|| request(domain, || write(large, 1)),
        &|| request(domain, || write(large, 2)),
        &|| request(domain, || write(small, 1)),
        &|| request(domain, || write(in_use, 1)),
        &|| request(domain, || write(not_in_use, 1)),
        &|| {
            request(domain, || {
                for _ in 0..PAIRS {
                    let block = domain.allocate(SMALL[0], 16).unwrap();
                    // SAFETY: not used.
                    unsafe { domain.deallocate(block) }.unwrap();
                }
            });
        },
        &|| {
            request(domain, || {
                for _ in 0..PAIRS {
                    // SAFETY: not used.
                    unsafe { domain.give_chunk(slab, 8) }.unwrap();
                    domain.take_chunk(slab, SMALL[0]).unwrap();
                }
            });
        },
        &|| request(other, || write(beside, 1)),
        &|| request(other, || write(middle, 1)),
        &|| with(&usual, &|_| ()),
        &|| with(&usual, &|request| after(request, 1)),
        &|| with(&usual, &|request| after(request, 2)),
        &|| with(&usual, &|request| keep(request, 1)),
        &|| with(&usual, &|request| keep(request, 2)),
        &|| with(&keep_arena, &|_| ()),
        &|| with(&keep_arena, &|request| take(request, 1)),
        &|| with(&keep_arena, &|request| take(request, 2)),
        &|| with(&usual, &|request| take(request, 1)),
        &|| with(&usual, &|request| input(request)),
    ];
    for thing in things {
        // The first time is dearer.
        thing();
        mark();
        thing();
        mark();
    }
}

/// Instructions between the marks of a child of this thread; `None` if it cannot be traced.
fn count(child: libc::pid_t) -> Option<Vec<u64>> {
    let (mut counts, mut marks) = (Vec::new(), 0);
    loop {
        let mut status = 0;
        // SAFETY: children of this thread alone; the one that is traced may be a thread of the process.
        let thread =
            unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        assert!(thread > 0, "{thread}");
        if libc::WIFEXITED(status) {
            if thread == child {
                return (marks != 0).then_some(counts);
            }
            continue;
        }
        assert!(libc::WIFSTOPPED(status), "the child was killed: {status}");
        let (is_mark, inside) = (libc::WSTOPSIG(status) == libc::SIGSTOP, marks % 2 == 1);
        match (is_mark, inside) {
            (true, false) => counts.push(0),
            (false, true) => *counts.last_mut()? += 1,
            _ => (),
        }
        marks += usize::from(is_mark);
        let steps = marks % 2 == 1;
        let how = if steps {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        };
        // SAFETY: it is stopped, and gets no signal.
        assert_eq!(unsafe { libc::ptrace(how, thread, 0, 0) }, 0);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "counts the instructions of optimized code")]
fn common_request_is_short() {
    if std::env::var_os(COUNTED).is_some() {
        return counted();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "run::tests::common_request_is_short"])
        .args(["--test-threads", "1", "--nocapture"])
        .env(COUNTED, "1")
        .env("VMSRS_PKU", "off")
        .stdout(std::process::Stdio::null())
        .spawn();
    let child = child.unwrap().id().cast_signed();
    let Some(counts) = count(child) else {
        eprintln!("not counted: this process may not trace a child");
        return;
    };
    let [nothing, empty, one, two, small, ref more @ ..] = counts[..] else {
        panic!("{counts:?}");
    };
    let [
        in_use,
        not_in_use,
        blocks_taken,
        chunks_taken,
        beside,
        huge,
        ref options @ ..,
    ] = more[..]
    else {
        panic!("{counts:?}");
    };
    let [
        usual,
        after,
        after_two,
        keep,
        keep_two,
        kept,
        arena_block,
        arena_blocks,
        plain,
        input,
    ] = options[..]
    else {
        panic!("{counts:?}");
    };
    let pair = |count: u64| (count - empty) / PAIRS as u64;
    let (taken, given) = (pair(blocks_taken), pair(chunks_taken));
    let (empty, writes) = (empty - nothing, one - (two - one) - nothing);
    let block = (small - one) / A_PAGE as u64;
    println!("{empty} instructions for an empty request, {writes} for one that writes a page");
    let chunks = [in_use, not_in_use].map(|count| (count - one) / A_PAGE as u64);
    println!("{block} for each of {A_PAGE} blocks on a page");
    println!("{chunks:?} for each chunk of a slab, in use and not");
    println!("{taken} for a block that is taken and freed, {given} for a chunk");
    println!(
        "more than in an empty request with options, which has {}:",
        usual - nothing
    );
    for (what, count) in [
        ("a function after the commit", after - usual),
        ("a second one", after_two - after),
        ("a variable that is kept", keep - usual),
        ("a second one", keep_two - keep),
        ("an arena that is kept", kept - usual),
        ("a block in it", arena_block - kept),
        ("a second one", arena_blocks - arena_block),
        ("a block in an arena", plain - usual),
        ("input", input - usual),
    ] {
        println!("{count}: {what}");
    }
    assert!(empty <= EMPTY_MAX, "{empty}");
    assert!(writes <= WRITES_MAX, "{writes}");
    assert!(block <= BLOCK_MAX, "{block}");
    assert!(
        chunks[0] <= CHUNKS_MAX[0] && chunks[1] <= CHUNKS_MAX[1],
        "{chunks:?}"
    );
    println!("{huge} in a block of 8 GiB, {beside} in a small one beside it");
    assert!(huge <= beside + HUGE_MAX, "{huge} {beside}");
}
