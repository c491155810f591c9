//! Every kind of error fails only its request, and the thread can run the next one.

mod common;

use common::{NULL_WRITE_ADDRESS, app, domain, failure, null_write, success};
use std::cell::Cell;
use std::hint::{black_box, spin_loop};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmsrs::{Error, Failure, Kind, Options, Request, RunError, request_stacks};

/// Runs requests that must fail with `kind`, and successful ones on the same thread; returns the last failure.
fn check(kind: Kind, f: impl Fn(&Request)) -> Failure {
    let domain = domain();
    let mut last = None;
    for round in 0..3 {
        let failure = failure(domain, &f);
        assert_eq!(failure.kind, kind, "{failure}");
        assert_ne!(failure.incident, 0);
        assert_eq!(success(domain, |_| round), round);
        last = Some(failure);
    }
    last.unwrap()
}

#[test]
fn null_write_is_memory_failure_with_address() {
    let failure = check(Kind::Memory, |_| null_write());
    assert_eq!(failure.address, NULL_WRITE_ADDRESS);
    assert_eq!(failure.signal, libc::SIGSEGV);
    assert_ne!(failure.instruction, 0);
    assert!(failure.to_string().contains("0x10"), "{failure}");
}

#[test]
fn wild_jump_is_memory_failure() {
    check(Kind::Memory, |_| {
        // SAFETY: the error under test.
        let nowhere: extern "C" fn() = unsafe { std::mem::transmute(black_box(8usize)) };
        nowhere();
    });
}

#[test]
fn read_past_end_of_mapped_file_is_memory_failure() {
    let file = tempfile::tempfile().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    check(Kind::Memory, |_| {
        // SAFETY: a new mapping; the read past the end of the file is the error under test.
        unsafe {
            let mapped = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            );
            black_box(mapped.cast::<u8>().read_volatile());
        }
    });
}

#[test]
fn division_by_zero_is_arithmetic_failure() {
    check(Kind::Arithmetic, |_| {
        // SAFETY: the operands list what it changes; the exception is the error under test.
        unsafe {
            std::arch::asm!("xor edx, edx", "xor ecx, ecx", "div ecx",
                out("eax") _, out("ecx") _, out("edx") _);
        }
    });
}

#[test]
fn invalid_opcode_and_breakpoint_are_instruction_failures() {
    // SAFETY: the exception is the error under test.
    check(Kind::Instruction, |_| unsafe { std::arch::asm!("ud2") });
    // SAFETY: as above.
    check(Kind::Instruction, |_| unsafe { std::arch::asm!("int3") });
}

#[test]
fn abort_fails_only_its_request() {
    check(Kind::Abort, |_| std::process::abort());
    // SAFETY: the abort is the error under test.
    check(Kind::Abort, |_| unsafe { libc::abort() });
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(depth) == u64::MAX {
        return 0;
    }
    recurse(depth + 1) + frame[black_box(3)]
}

#[test]
fn stack_overflow_hits_the_guard() {
    check(Kind::StackOverflow, |_| {
        black_box(recurse(0));
    });
}

#[test]
fn frame_of_any_length_of_32_bits_hits_the_guard() {
    // Other stacks lie next to the thread's.
    let (end, ends) = mpsc::channel::<()>();
    let ends = Arc::new(Mutex::new(ends));
    let (ready, is_ready) = mpsc::channel();
    let mut others = Vec::new();
    for _ in 0..8 {
        let (ends, ready) = (Arc::clone(&ends), ready.clone());
        others.push(std::thread::spawn(move || {
            success(domain(), |_| ());
            ready.send(()).unwrap();
            let _ = ends.lock().unwrap().recv();
        }));
        is_ready.recv().unwrap();
    }
    for length in [300 << 10, 65 << 20, 1 << 30, 3 << 30, (4 << 30) - 1u64] {
        let failure = check(Kind::StackOverflow, |_| {
            // As a function that was compiled without stack probes.
            let on_stack = [0u8; 16];
            let local = std::ptr::from_ref(black_box(&on_stack)) as u64;
            // SAFETY: the error under test.
            unsafe { ((local - length) as *mut u8).write_volatile(1) };
        });
        assert_ne!(failure.address, 0);
    }
    drop(end);
    for other in others {
        other.join().unwrap();
    }
}

/// Uses at least that many bytes of stack, in frames of at least 4 KiB.
fn descend(bytes: usize) -> usize {
    let frame = black_box([1u8; 4096]);
    if bytes < 4096 {
        return usize::from(frame[black_box(5)]);
    }
    descend(bytes - 4096) + usize::from(frame[black_box(7)])
}

#[test]
fn request_gets_the_stack_that_it_asks_for() {
    const NEEDS: usize = 4 << 20;
    let domain = domain();
    let with = |stack| Options {
        stack,
        ..Options::default()
    };
    let run = |stack| domain.run_with(&with(stack), |_| Ok::<_, Error>(descend(NEEDS)));
    assert!(
        matches!(run(None), Err(RunError::Failed(failure)) if failure.kind == Kind::StackOverflow)
    );
    run(Some(NEEDS * 4)).unwrap();
    // The thread keeps it.
    run(Some(16 << 10)).unwrap();
    let mut task = vmsrs::Task::new(domain, with(Some(NEEDS * 8))).unwrap();
    let done = task.step(|_| vmsrs::Step::Done(descend(NEEDS * 2)));
    assert!(matches!(done, Ok(vmsrs::Step::Done(_))));
    let refused = run(Some((1 << 30) + 1));
    assert!(matches!(
        refused,
        Err(RunError::Refused(Error::Argument(_)))
    ));
    let nested = success(domain, |_| {
        domain.run_with(&with(Some(1 << 28)), |_| Ok::<_, ()>(()))
    });
    assert!(matches!(nested, Err(RunError::Refused(Error::Nested))));
}

#[test]
fn bounds_of_the_stack_are_those_of_the_request() {
    assert_eq!(vmsrs::stack_bounds(), None);
    let options = Options {
        stack: Some(1 << 20),
        ..Options::default()
    };
    let outcome = domain().run_with(&options, |_| {
        let bounds = vmsrs::stack_bounds().unwrap();
        let local = std::ptr::from_ref(black_box(&bounds)).cast::<u8>();
        assert!(bounds.contains(&local));
        assert_eq!(bounds.end as usize - bounds.start as usize, 1 << 20);
        // SAFETY: the lowest byte of the stack, which nothing uses yet.
        unsafe { bounds.start.cast_mut().write_volatile(1) };
        Ok::<_, ()>(())
    });
    outcome.unwrap();
    assert_eq!(vmsrs::stack_bounds(), None);
}

#[test]
fn code_can_ask_whether_it_runs_in_a_request() {
    static IN_DEFER: AtomicBool = AtomicBool::new(true);
    assert!(!vmsrs::in_request());
    let outcome = domain().run(|request| {
        assert!(vmsrs::in_request());
        std::thread::scope(|scope| scope.spawn(|| assert!(!vmsrs::in_request())).join())
            .map_err(|_| "the thread has no request")?;
        request
            .defer(|| IN_DEFER.store(vmsrs::in_request(), Ordering::SeqCst))
            .map_err(|_| "deferred")?;
        Err::<(), _>("given up")
    });
    assert!(matches!(outcome, Err(RunError::GivenUp("given up"))));
    assert!(!IN_DEFER.load(Ordering::SeqCst) && !vmsrs::in_request());
}

#[test]
fn panic_is_failure_with_its_message() {
    let failure = check(Kind::Panic, |_| panic!("thirteen is {}", 13));
    assert_eq!(failure.message, "thirteen is 13");
}

#[test]
fn failed_invariant_is_failure_with_its_message() {
    let failure = check(Kind::Invariant, |request| {
        request.fail("balance below zero")
    });
    assert_eq!(failure.message, "balance below zero");
}

/// Sets the number at the root of a domain.
fn set(domain: &'static vmsrs::Domain, value: u64) -> Result<(), RunError<Error>> {
    domain.run(|request| {
        match request.root::<u64>() {
            // SAFETY: set below, and the request holds the domain.
            Some(mut root) => unsafe { *root.as_mut() = value },
            None => request.set_root(Some(NonNull::from(request.alloc(value)?)))?,
        }
        Ok(())
    })
}

/// An invariant: the number is even. Some numbers make errors in the check.
fn even(domain: &'static vmsrs::Domain) -> Result<(), String> {
    // SAFETY: set by set(), and the request holds the domain.
    match unsafe { domain.root_address().cast::<u64>().as_ref() } {
        Some(13) => panic!("thirteen"),
        Some(15) => null_write(),
        Some(17) => std::process::abort(),
        Some(value) if value % 2 == 1 => return Err(format!("{value} is odd")),
        _ => {}
    }
    Ok(())
}

fn invariant_failure(outcome: Result<(), RunError<Error>>) -> String {
    match outcome {
        Err(RunError::Failed(failure)) => {
            assert_eq!(failure.kind, Kind::Invariant, "{failure}");
            failure.message
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn commit_that_breaks_invariant_fails_with_its_message() {
    let domain = domain();
    domain.set_invariant(even).unwrap();
    assert!(domain.set_invariant(even).is_err());
    set(domain, 2).unwrap();
    assert_eq!(invariant_failure(set(domain, 3)), "3 is odd");
    set(domain, 4).unwrap();
}

#[test]
fn error_in_invariant_check_is_invariant_failure() {
    let domain = domain();
    domain.set_invariant(even).unwrap();
    assert_eq!(invariant_failure(set(domain, 13)), "thirteen");
    for value in [15, 17] {
        let message = invariant_failure(set(domain, value));
        assert_eq!(message, "an error in the check of the invariant");
        set(domain, 2).unwrap();
    }
}

#[test]
fn invariant_is_checked_at_leave_and_at_commit() {
    let (own, shared) = (domain(), domain());
    set(shared, 2).unwrap();
    shared.set_invariant(even).unwrap();
    for by_leave in [true, false] {
        let break_it = |request: &Request| {
            let entered = request.enter(shared).unwrap();
            // SAFETY: set by set(), and the request holds the domain.
            unsafe { *shared.root_address().cast::<u64>() = 5 };
            if by_leave {
                entered.leave().unwrap();
            } else {
                entered.keep();
                request.commit(false).unwrap();
            }
            unreachable!("the invariant is broken");
        };
        assert_eq!(failure(own, break_it).kind, Kind::Invariant);
        set(shared, 2).unwrap();
    }
}

#[test]
fn app_invariant_applies_to_every_domain() {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { vmsrs::App::open("with an invariant") }.unwrap();
    app.set_invariant(even).unwrap();
    assert!(app.set_invariant(even).is_err());
    for key in ["one", "two"] {
        let domain = app.domain(key).unwrap();
        set(domain, 2).unwrap();
        assert_eq!(invariant_failure(set(domain, 7)), "7 is odd");
        set(domain, 2).unwrap();
    }
}

#[test]
fn control_words_and_direction_flag_are_restored() {
    check(Kind::Instruction, |_| {
        let mxcsr = 0x1f80u32 | 0x6000;
        // SAFETY: the changed control words are the error under test.
        unsafe { std::arch::asm!("ldmxcsr [{}]", "std", "fldz", "ud2", in(reg) &raw const mxcsr) };
    });
    assert!((black_box(1.0f64) / black_box(3.0) * 3.0 - 1.0).abs() < 1e-15);
    let mut mxcsr = 0u32;
    // SAFETY: stores the control word.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr) };
    assert_eq!(mxcsr & 0x6000, 0);
}

#[test]
fn failed_request_leaves_no_signals_blocked() {
    check(Kind::Panic, |_| {
        // SAFETY: an all-zero set is valid; changes only this thread's mask.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        }
        panic!("with all signals blocked")
    });
    // If the signal were still blocked, this would end the process.
    check(Kind::Memory, |_| null_write());
}

#[test]
fn double_free_is_detected() {
    check(Kind::DoubleFree, |request| {
        let block = NonNull::from(request.alloc([1u64; 8]).unwrap());
        // SAFETY: the first call is valid, the second one is the error under test.
        unsafe {
            request.free(block).unwrap();
            request.free(block).unwrap();
        }
    });
}

#[test]
fn double_free_in_later_request_is_detected() {
    let domain = domain();
    let block = success(domain, |request| {
        NonNull::from(request.alloc([1u64; 8]).unwrap()).addr()
    });
    let free = |request: &Request| {
        let block = NonNull::new(block.get() as *mut [u64; 8]).unwrap();
        // SAFETY: valid the first time; the second time is the error under test.
        unsafe { request.free(block).unwrap() };
    };
    success(domain, free);
    assert_eq!(failure(domain, free).kind, Kind::DoubleFree);
}

#[test]
fn free_of_foreign_pointer_is_detected() {
    let foreign = Box::new(5u64);
    let failure = check(Kind::ForeignFree, |request| {
        // SAFETY: the error under test.
        unsafe { request.free(NonNull::from(&*foreign)).unwrap() };
    });
    assert_eq!(failure.address, std::ptr::from_ref(&*foreign) as u64);
    check(Kind::ForeignFree, |request| {
        let block = request.alloc([1u64; 8]).unwrap();
        // SAFETY: as above.
        unsafe { request.free(NonNull::from(&block[2])).unwrap() };
    });
}

#[test]
fn free_and_realloc_of_any_foreign_pointer_are_detected() {
    let other = domain();
    let theirs = success(other, |_| other.allocate(64, 16).unwrap().as_ptr() as usize);
    let local = [0u64; 8];
    let on_stack = std::ptr::from_ref(&local) as usize;
    let pointers: [&dyn Fn(usize) -> usize; 7] = [
        // A block of another domain, the stack, code.
        &|_| theirs,
        &|_| on_stack,
        &|_| null_write as *const () as usize,
        // Within a block, aligned and unaligned; its header; nothing mapped.
        &|block| block + 16,
        &|block| block + 5,
        &|block| block - 5,
        &|_| 16,
    ];
    for (number, pointer) in pointers.iter().enumerate() {
        for resize in [false, true] {
            let domain = domain();
            let failure = failure(domain, |_| {
                let block = domain.allocate(64, 16).unwrap().as_ptr() as usize;
                let wrong = NonNull::new(pointer(block) as *mut u8).unwrap();
                // SAFETY: the error under test.
                unsafe {
                    if resize {
                        let _ = domain.reallocate(wrong, 200);
                    } else {
                        let _ = domain.deallocate(wrong);
                    }
                }
            });
            assert_eq!(failure.kind, Kind::ForeignFree, "{number}: {failure}");
        }
    }
    // The other domain's block is intact.
    let theirs = NonNull::new(theirs as *mut u8).unwrap();
    // SAFETY: an allocated block that is not used afterwards.
    success(other, |_| unsafe { other.deallocate(theirs).unwrap() });
}

#[test]
fn overflow_of_block_is_detected_at_commit() {
    for size in [1, 8, 15, 16, 40] {
        let domain = domain();
        let failure = failure(domain, |_| {
            let block = domain.allocate(size, 8).unwrap();
            // SAFETY: the error under test.
            unsafe { block.add(size).write(0) };
        });
        assert_eq!(failure.kind, Kind::RedZone);
    }
}

#[test]
fn overflow_of_older_block_is_detected_at_commit() {
    let domain = domain();
    let block = success(domain, |_| domain.allocate(24, 8).unwrap().addr().get());
    let failure = failure(domain, |_| {
        // SAFETY: the error under test.
        unsafe { ((block + 24) as *mut u8).write(0) };
    });
    assert_eq!(failure.kind, Kind::RedZone);
    assert_eq!(failure.address, (block + 24) as u64);
}

#[test]
fn write_to_freed_block_is_detected_at_commit() {
    let failure = check(Kind::UseAfterFree, |request| {
        let block = NonNull::from(request.alloc([1u64; 8]).unwrap());
        // SAFETY: the free is valid; the write is the error under test.
        unsafe {
            request.free(block).unwrap();
            (*block.as_ptr())[3] = 4;
        }
    });
    assert_ne!(failure.address, 0);
}

#[test]
fn overwritten_block_header_is_detected_at_commit() {
    let failure = failure(domain(), |request| {
        let block = NonNull::from(request.alloc([1u64; 8]).unwrap()).cast::<u64>();
        // SAFETY: the error under test.
        unsafe { block.sub(1).write(7) };
    });
    assert_eq!(failure.kind, Kind::HeapCorrupt);
}

/// The first page of a domain, in which its first block lies.
fn header_page(block: NonNull<u8>) -> *mut u8 {
    let page = block.as_ptr().map_addr(|address| address & !4095);
    // SAFETY: the domain's first page is mapped.
    let magic = unsafe { std::slice::from_raw_parts(page, 8) };
    assert_eq!(magic, b"VMSRSDOM");
    page
}

/// What a request can do with a domain's heap after it has damaged the header.
const USES: [fn(&'static vmsrs::Domain, NonNull<u8>); 5] = [
    |domain, _| drop(domain.allocate(16, 16)),
    |domain, _| drop(domain.set_root_address(std::ptr::null_mut())),
    // SAFETY: the block is not used afterwards.
    |domain, block| drop(unsafe { domain.deallocate(block) }),
    // SAFETY: as above.
    |domain, block| drop(unsafe { domain.reallocate(block, 500) }),
    // Only the audit.
    |_, _| {},
];

/// Damages a domain's header, in the request that created the heap or in a later one; each use must find it.
fn damage_header(damage: impl Fn(*mut u8)) {
    for same_request in [true, false] {
        for (number, usage) in USES.iter().enumerate() {
            let domain = domain();
            let allocate = || {
                let block = domain.allocate(10, 16).unwrap();
                domain.set_root_address(block.as_ptr()).unwrap();
                block
            };
            let old = (!same_request).then(|| success(domain, |_| allocate().as_ptr() as usize));
            let failure = failure(domain, |_| {
                let block = old.map_or_else(allocate, |old| NonNull::new(old as *mut u8).unwrap());
                damage(header_page(block));
                usage(domain, block);
            });
            assert_eq!(failure.kind, Kind::HeapCorrupt, "use {number}: {failure}");
        }
    }
}

#[test]
fn zeroed_header_is_not_taken_for_new_domain() {
    // SAFETY: the error under test.
    damage_header(|page| unsafe { page.write_bytes(0, 4096) });
    // SAFETY: as above.
    damage_header(|page| unsafe { page.write_bytes(0, 8) });
}

#[test]
fn garbage_header_is_detected_before_use() {
    // SAFETY: the error under test.
    damage_header(|page| unsafe { page.write_bytes(0xff, 4096) });
    // Magic, fingerprint, number of the domain, number of extents.
    for (offset, bytes) in [(0, 8), (8, 8), (32, 4), (36, 4)] {
        // SAFETY: as above.
        damage_header(|page| unsafe { page.add(offset).write_bytes(0xff, bytes) });
    }
}

#[test]
fn defers_run_in_reverse_order_only_on_failure() {
    let domain = domain();
    let order = Arc::new(Mutex::new(Vec::new()));
    let defer = |request: &Request| {
        for number in 0..3 {
            let order = Arc::clone(&order);
            request
                .defer(move || order.lock().unwrap().push(number))
                .unwrap();
        }
    };
    success(domain, defer);
    assert!(order.lock().unwrap().is_empty());
    assert_eq!(
        Arc::strong_count(&order),
        1,
        "defers that did not run are not dropped"
    );
    failure(domain, |request| {
        defer(request);
        null_write();
    });
    assert_eq!(std::mem::take(&mut *order.lock().unwrap()), [2, 1, 0]);
    let outcome = domain.run(|request| {
        defer(request);
        Err::<(), _>("no")
    });
    assert!(matches!(outcome, Err(RunError::GivenUp("no"))));
    assert_eq!(std::mem::take(&mut *order.lock().unwrap()), [2, 1, 0]);
}

#[test]
fn error_in_defer_ends_only_that_defer() {
    let domain = domain();
    let order = Arc::new(Mutex::new(Vec::new()));
    let failure = failure(domain, |request| {
        let last = Arc::clone(&order);
        request.defer(move || last.lock().unwrap().push(1)).unwrap();
        request.defer(null_write).unwrap();
        request.defer(|| panic!("in a defer")).unwrap();
        let first = Arc::clone(&order);
        request
            .defer(move || first.lock().unwrap().push(4))
            .unwrap();
        null_write();
    });
    assert_eq!(failure.kind, Kind::Memory);
    assert_eq!(failure.defers_failed, 2);
    assert_eq!(*order.lock().unwrap(), [4, 1]);
    success(domain, |_| ());
}

#[test]
fn failure_releases_locks_to_waiters() {
    let shared = domain();
    let (hold, is_held) = mpsc::channel();
    let mut waiters = Vec::new();
    let guilty = std::thread::spawn(move || {
        let own = domain();
        failure(own, |request| {
            let _kept = request.enter(shared).unwrap().keep();
            hold.send(()).unwrap();
            while !has_waiters(shared) {
                std::thread::yield_now();
            }
            null_write();
        })
    });
    is_held.recv().unwrap();
    for _ in 0..4 {
        waiters.push(std::thread::spawn(move || {
            let own = domain();
            success(own, |request| {
                let entered = request.enter(shared).unwrap();
                entered.leave().unwrap();
            });
            success(shared, |_| ());
        }));
    }
    assert_eq!(guilty.join().unwrap().kind, Kind::Memory);
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

/// Whether a request waits for the domain. A short wait marks the lock in the same way, so this thread may itself be
/// the waiter.
fn has_waiters(shared: &'static vmsrs::Domain) -> bool {
    std::thread::spawn(move || {
        let options = Options {
            lock_timeout: Some(Duration::from_millis(1)),
            ..Options::default()
        };
        match shared.run_with(&options, |_| Ok::<_, ()>(())) {
            Err(RunError::Refused(Error::LockTimeout { .. })) => true,
            other => panic!("{other:?}"),
        }
    })
    .join()
    .unwrap()
}

#[test]
fn misuse_is_refused_with_specific_error() {
    let (one, two) = (domain(), domain());
    assert!(matches!(one.allocate(8, 8), Err(Error::NotInRequest)));
    // SAFETY: the address is never used.
    let outcome = unsafe { one.deallocate(NonNull::dangling()) };
    assert!(matches!(outcome, Err(Error::NotInRequest)));
    assert!(matches!(
        one.set_root_address(std::ptr::null_mut()),
        Err(Error::NotInRequest)
    ));
    success(one, |request| {
        let nested = two.run(|_| Ok::<_, ()>(()));
        assert!(matches!(nested, Err(RunError::Refused(Error::Nested))));
        assert!(matches!(two.allocate(8, 8), Err(Error::NotHeld)));
        assert!(matches!(one.allocate(8, 3), Err(Error::Argument(_))));
        assert!(matches!(one.allocate(8, 8192), Err(Error::Argument(_))));
        assert!(matches!(
            one.allocate(2 << 40, 8),
            Err(Error::OutOfMemory { .. })
        ));
        assert!(matches!(request.enter(one), Err(Error::AlreadyHeld)));
        let entered = request.enter(two).unwrap();
        assert!(matches!(request.enter(two), Err(Error::AlreadyHeld)));
        entered.leave().unwrap();
        request.enter(two).unwrap().leave().unwrap();
    });
    assert!(matches!(app().domain(""), Err(Error::Length { .. })));
    assert!(matches!(app().domain([0; 65]), Err(Error::Length { .. })));
    // SAFETY: refused.
    let nameless = unsafe { vmsrs::App::open("") };
    assert!(matches!(nameless, Err(Error::Length { .. })));
}

#[test]
fn request_can_hold_256_domains() {
    let others: Vec<_> = (0..256).map(|_| domain()).collect();
    success(domain(), |request| {
        for other in &others[..255] {
            request.enter(other).unwrap().keep();
        }
        assert!(matches!(request.enter(others[255]), Err(Error::Limit(_))));
    });
    success(others[200], |request| {
        request.enter_all(&others).unwrap();
        for other in &others {
            other.allocate(10, 16).unwrap();
        }
    });
    let one = domain();
    success(one, |request| {
        // One too many: none of them is held.
        assert!(matches!(request.enter_all(&others), Err(Error::Limit(_))));
        request.enter(others[0]).unwrap().keep();
    });
    for other in others {
        success(other, |_| ());
    }
}

#[test]
fn same_name_and_key_give_same_app_and_domain() {
    assert!(std::ptr::eq(app(), app()));
    let one = app().domain("twice").unwrap();
    assert!(std::ptr::eq(one, app().domain(b"twice").unwrap()));
    assert_eq!(app().protection(), vmsrs::Protection::None);
}

#[test]
fn data_and_root_persist_between_requests() {
    let domain = domain();
    success(domain, |request| {
        assert_eq!(request.root::<u64>(), None);
        let block = request.alloc(41u64).unwrap();
        request.set_root(Some(NonNull::from(block))).unwrap();
    });
    let value = success(domain, |request| {
        // SAFETY: set above, and the request holds the domain.
        unsafe { *request.root::<u64>().unwrap().as_mut() += 1 };
        // SAFETY: as above.
        unsafe { *request.root::<u64>().unwrap().as_ref() }
    });
    assert_eq!(value, 42);
}

#[test]
fn arena_is_empty_in_every_request() {
    let domain = domain();
    for _ in 0..50 {
        success(domain, |request| {
            let text = request.arena().alloc_str("hello").unwrap();
            assert_eq!(text, "hello");
            assert_eq!(request.arena().used(), 5);
            assert!(request.arena().allocate(1 << 20, 16).is_some());
        });
    }
}

/// The signal that the library uses for the driver's interrupts.
fn interrupt() -> i32 {
    (libc::SIGRTMIN()..=libc::SIGRTMAX())
        .rev()
        .find(|&signal| {
            // SAFETY: an all-zero sigaction is valid; it is only read.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut action);
                action.sa_sigaction != libc::SIG_DFL
            }
        })
        .unwrap()
}

#[test]
fn interrupt_ends_only_request_past_deadline() {
    let domain = domain();
    // SAFETY: sends a signal to this thread.
    let interrupt = |_: &Request| unsafe { libc::raise(interrupt()) };
    assert_eq!(success(domain, interrupt), 0);
    let run = |deadline: Duration, late: bool| {
        let options = Options {
            deadline: Some(deadline),
            ..Options::default()
        };
        domain.run_with(&options, |request| {
            let start = Instant::now();
            while late && start.elapsed() < 2 * deadline {}
            let sent = interrupt(request);
            // raise() is in the C library, which the thread leaves before it is cut short.
            if late {
                loop {
                    spin_loop();
                }
            }
            Ok::<_, ()>(sent)
        })
    };
    let hour = Duration::from_secs(3600);
    assert!(matches!(run(hour, false), Ok(0)));
    let Err(RunError::Failed(failure)) = run(Duration::from_millis(1), true) else {
        panic!("the request returned after its deadline")
    };
    assert_eq!(failure.kind, Kind::Deadline);
    assert!(matches!(run(hour, false), Ok(0)));
}

thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

#[test]
fn repeated_failures_do_not_leak_stacks() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                let domain = domain();
                for _ in 0..1000 {
                    failure(domain, |_| {
                        COUNT.set(COUNT.get() + 1);
                        null_write();
                    });
                }
                // One stack per thread, however many of its requests have failed; other tests have some as well.
                assert!(request_stacks() < 200);
                assert_eq!(COUNT.get(), 1000);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
