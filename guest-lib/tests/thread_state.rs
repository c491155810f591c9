//! A thread is as its request found it: what a failed request has changed of it is put back, and a request that
//! returns leaves the CPU as functions have to.

mod common;

use common::{domain, failure, null_write, success};
use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use vmsrs::{Domain, Kind, Options, Request, Step, Task};

/// Ways to fail: by a signal, by unwinding, by the library's own word, by a signal that the C library raises.
const FAILURES: [fn(&Request); 4] = [
    |_| null_write(),
    |_| panic!("on purpose"),
    |request| request.fail("on purpose"),
    // SAFETY: the abort is the error under test.
    |_| unsafe { libc::abort() },
];

/// Runs something in a request that fails after it, in each way.
fn in_failing_requests(change: impl Fn(), check: impl Fn(&'static Domain)) {
    let domain = domain();
    for fail in FAILURES {
        failure(domain, |request| {
            change();
            fail(request);
        });
        check(domain);
    }
}

fn set_of(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: all zero is a set.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            assert_eq!(libc::sigaddset(&raw mut set, signal), 0);
        }
        set
    }
}

/// Changes the calling thread's mask; returns what it was.
fn change_mask(how: c_int, signals: &[c_int]) -> u64 {
    let set = set_of(signals);
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: changes this thread's mask alone.
    unsafe {
        assert_eq!(
            libc::pthread_sigmask(how, &raw const set, before.as_mut_ptr()),
            0
        );
        // The kernel's set is the first word.
        before.as_ptr().cast::<u64>().read()
    }
}

fn mask() -> u64 {
    change_mask(libc::SIG_BLOCK, &[])
}

#[test]
fn signal_mask_is_put_back() {
    change_mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGTERM]);
    let before = mask();
    in_failing_requests(
        || {
            change_mask(
                libc::SIG_SETMASK,
                &[libc::SIGUSR1, libc::SIGCHLD, libc::SIGHUP, libc::SIGBUS],
            );
        },
        |domain| {
            assert_eq!(mask(), before);
            success(domain, |_| assert_eq!(mask(), before));
        },
    );
}

#[test]
fn signal_mask_that_the_server_has_changed_between_requests_is_kept() {
    let domain = domain();
    let mut masks = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM]
        .into_iter()
        .cycle();
    for requests in [0, 1, 3, 200] {
        change_mask(libc::SIG_SETMASK, &[masks.next().unwrap()]);
        let before = mask();
        for _ in 0..requests {
            success(domain, |_| ());
        }
        failure(domain, |_| {
            change_mask(libc::SIG_SETMASK, &[libc::SIGCHLD]);
            null_write();
        });
        assert_eq!(mask(), before, "after {requests} requests");
    }
}

#[test]
fn signal_mask_of_a_request_that_returns_is_the_servers() {
    let domain = domain();
    success(domain, |_| change_mask(libc::SIG_BLOCK, &[libc::SIGUSR1]));
    let before = mask();
    failure(domain, |_| null_write());
    assert_eq!(mask(), before);
}

#[test]
fn broken_pipe_of_a_failed_request_does_not_end_the_process() {
    // As libraries do it that write to a socket and must not change the disposition of SIGPIPE.
    // SAFETY: the default disposition, which programs in Rust do not have.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    in_failing_requests(
        || {
            change_mask(libc::SIG_BLOCK, &[libc::SIGPIPE]);
            let mut ends = [0; 2];
            // SAFETY: a pipe of this function, whose reading end is closed.
            unsafe {
                assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
                libc::close(ends[0]);
                assert_eq!(libc::write(ends[1], ends.as_ptr().cast(), 1), -1);
                libc::close(ends[1]);
            }
        },
        |domain| success(domain, |_| ()),
    );
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(depth) == u64::MAX {
        return 0;
    }
    recurse(depth + 1) + frame[black_box(3)]
}

fn overflow(domain: &'static Domain) {
    let failure = failure(domain, |_| {
        black_box(recurse(0));
    });
    assert_eq!(failure.kind, Kind::StackOverflow);
}

fn set_signal_stack(place: *mut c_void, flags: c_int, size: usize) {
    let stack = libc::stack_t {
        ss_sp: place,
        ss_flags: flags,
        ss_size: size,
    };
    // SAFETY: no stack, or memory that stays.
    unsafe { assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0) };
}

#[test]
fn alternate_signal_stack_is_put_back() {
    in_failing_requests(
        || set_signal_stack(ptr::null_mut(), libc::SS_DISABLE, 0),
        overflow,
    );
    in_failing_requests(
        || {
            let stack = Box::leak(Box::new([0u8; 32 * 1024]));
            set_signal_stack(stack.as_mut_ptr().cast(), 0, stack.len());
        },
        overflow,
    );
}

fn signal_stack() -> usize {
    // SAFETY: reads where the stack is.
    unsafe {
        let mut stack = std::mem::zeroed::<libc::stack_t>();
        assert_eq!(libc::sigaltstack(ptr::null(), &raw mut stack), 0);
        stack.ss_sp.addr()
    }
}

#[test]
fn alternate_signal_stack_on_the_request_stack_is_put_back() {
    let domain = domain();
    success(domain, |_| {});
    let before = signal_stack();
    failure(domain, |_| {
        let mut stack = [0u8; 64 * 1024];
        set_signal_stack(stack.as_mut_ptr().cast(), 0, stack.len());
        null_write();
    });
    assert_eq!(signal_stack(), before);
}

#[test]
fn alternate_signal_stack_that_a_request_which_returned_has_taken_away_is_put_back() {
    let domain = domain();
    success(domain, |_| {
        set_signal_stack(ptr::null_mut(), libc::SS_DISABLE, 0);
    });
    overflow(domain);
}

/// Alignment check and direction.
const AC: u64 = 0x4_0000;
const DF: u64 = 0x400;

fn set_flags(flags: u64) {
    // SAFETY: what the flags do to the code that follows is the error under test.
    unsafe { asm!("pushfq", "or [rsp], {}", "popfq", in(reg) flags) };
}

fn flags() -> u64 {
    let flags;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

fn unaligned_read() -> u64 {
    let bytes = black_box([7u8; 17]);
    let address = black_box(bytes.as_ptr() as usize | 1);
    let value;
    // SAFETY: eight bytes inside the array, or just before its end.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address) };
    value
}

#[test]
fn flags_of_a_failed_request_are_put_back() {
    let fails: [fn(&Request); 3] = [
        |_| null_write(),
        |request| request.fail("on purpose"),
        // SAFETY: the exception is the error under test.
        |_| unsafe { asm!("ud2") },
    ];
    for (fail, bad) in fails.iter().flat_map(|fail| [(fail, AC), (fail, AC | DF)]) {
        let domain = domain();
        failure(domain, |request| {
            set_flags(bad);
            fail(request);
        });
        assert_eq!(flags() & (AC | DF), 0);
        success(domain, |_| unaligned_read());
    }
}

/// The rounding modes of SSE and x87.
fn control_words() -> (u32, u16) {
    let (mut sse, mut x87) = (0u32, 0u16);
    // SAFETY: stores both control words.
    unsafe { asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut sse, in(reg) &raw mut x87) };
    (sse & !0x3f, x87)
}

/// Changes both, with all exceptions on; one of x87 is pending then.
fn change_control_words() {
    let (sse, x87) = (0x7f80u32, 0x0c00u16);
    // SAFETY: the changed control words are the error under test.
    unsafe {
        asm!("ldmxcsr [{}]", "fldcw [{}]", "fldz", "fldz", "fdivp st(1), st",
            in(reg) &raw const sse, in(reg) &raw const x87);
    }
}

#[test]
fn control_words_and_flags_of_a_request_that_returns_are_put_back() {
    let before = control_words();
    let works: [extern "C" fn(); 4] = [
        leave_flags::<AC>,
        leave_flags::<DF>,
        leave_flags::<{ AC | DF }>,
        leave_control_words,
    ];
    for work in works {
        let domain = domain();
        success(domain, |_| work());
        assert_eq!(flags() & (AC | DF), 0);
        assert_eq!(control_words(), before);
        success(domain, |_| {
            unaligned_read();
            assert!((black_box(1.0f64) / black_box(3.0) * 3.0 - 1.0).abs() < 1e-15);
        });
    }
}

extern "C" fn leave_flags<const FLAGS: u64>() {
    set_flags(FLAGS);
}

extern "C" fn leave_control_words() {
    change_control_words();
}

/// The calling thread's state and type of cancellation.
fn cancellation() -> (c_int, c_int) {
    let (mut state, mut kind) = (0, 0);
    // SAFETY: changes this thread's for a moment.
    unsafe {
        pthread_setcancelstate(DISABLE, &raw mut state);
        pthread_setcanceltype(0, &raw mut kind);
        pthread_setcanceltype(kind, ptr::null_mut());
        pthread_setcancelstate(state, ptr::null_mut());
    }
    (state, kind)
}

const DISABLE: c_int = 1;
const ASYNCHRONOUS: c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
}

#[test]
fn cancellation_state_and_type_are_put_back() {
    let before = cancellation();
    in_failing_requests(
        // SAFETY: changes this thread's; nobody cancels it.
        || unsafe {
            pthread_setcancelstate(DISABLE, ptr::null_mut());
            pthread_setcanceltype(ASYNCHRONOUS, ptr::null_mut());
        },
        |_| assert_eq!(cancellation(), before),
    );
}

#[test]
fn locale_of_the_thread_is_put_back() {
    // SAFETY: a new locale, which is never freed; reads this thread's.
    let (other, before) = unsafe {
        (
            libc::newlocale(libc::LC_ALL_MASK, c"C".as_ptr(), ptr::null_mut()),
            libc::uselocale(ptr::null_mut()),
        )
    };
    assert!(!other.is_null());
    in_failing_requests(
        // SAFETY: a locale.
        || assert_eq!(unsafe { libc::uselocale(other) }, before),
        // SAFETY: reads.
        |_| assert_eq!(unsafe { libc::uselocale(ptr::null_mut()) }, before),
    );
}

/// The head of the list of robust mutexes, as the kernel has it: what it leads to, and the mutex that is being locked.
fn robust_list() -> (usize, usize, usize) {
    let (mut head, mut length) = (ptr::null_mut::<[usize; 3]>(), 0usize);
    // SAFETY: fills both; the head is the C library's.
    unsafe {
        let call = libc::SYS_get_robust_list;
        assert_eq!(libc::syscall(call, 0, &raw mut head, &raw mut length), 0);
        let [first, _, pending] = head.read();
        (head as usize, first, pending)
    }
}

fn robust_mutex(place: *mut libc::pthread_mutex_t) {
    // SAFETY: room for a mutex.
    unsafe {
        let mut attributes = zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        assert_eq!(libc::pthread_mutex_init(place, &raw const attributes), 0);
    }
}

#[test]
fn robust_mutexes_on_the_stack_of_a_failed_request_are_off_the_list() {
    // One that is not on that stack, and stays locked.
    let kept = Box::leak(Box::new(MaybeUninit::<libc::pthread_mutex_t>::uninit())).as_mut_ptr();
    robust_mutex(kept);
    // SAFETY: a mutex that nobody else has.
    unsafe { assert_eq!(libc::pthread_mutex_lock(kept), 0) };
    let before = robust_list();
    // Not by a panic: its unwinding overwrites the frames.
    for fail in [FAILURES[0], FAILURES[2], FAILURES[3]] {
        failure(domain(), |request| {
            let mut mutexes = [MaybeUninit::<libc::pthread_mutex_t>::uninit(); 3];
            for mutex in &mut mutexes {
                robust_mutex(mutex.as_mut_ptr());
                // SAFETY: as above; it stays locked, which is the error under test.
                unsafe { libc::pthread_mutex_lock(mutex.as_mut_ptr()) };
            }
            fail(request);
            black_box(&mut mutexes);
        });
        assert_eq!(robust_list(), before);
    }
    // SAFETY: locked above.
    unsafe { assert_eq!(libc::pthread_mutex_unlock(kept), 0) };
    assert_eq!(robust_list(), (before.0, before.0, 0));
}

#[test]
fn robust_list_that_a_failed_request_has_destroyed_is_empty() {
    let (head, ..) = robust_list();
    for link in [16usize, usize::MAX & !7] {
        failure(domain(), |request| {
            let mut mutex = MaybeUninit::<libc::pthread_mutex_t>::uninit();
            robust_mutex(mutex.as_mut_ptr());
            // SAFETY: the link that it has on the list is its last word; that it leads elsewhere is the error under test.
            unsafe {
                libc::pthread_mutex_lock(mutex.as_mut_ptr());
                let words = mutex.as_mut_ptr().cast::<usize>();
                words
                    .wrapping_add(size_of::<libc::pthread_mutex_t>() / 8 - 1)
                    .write(link);
            }
            request.fail("on purpose");
        });
        assert_eq!(robust_list(), (head, head, 0));
    }
}

#[test]
fn wild_pointer_to_a_robust_mutex_is_off_the_list() {
    let before = robust_list();
    failure(domain(), |_| {
        let mut mutex = MaybeUninit::uninit();
        robust_mutex(mutex.as_mut_ptr());
        // SAFETY: a page that nobody may write to, with the bytes of a robust mutex in it.
        unsafe {
            let page = libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            page.cast::<libc::pthread_mutex_t>()
                .write(mutex.assume_init());
            libc::mprotect(page, 4096, libc::PROT_READ);
            libc::pthread_mutex_lock(page.cast());
        }
    });
    assert_eq!(robust_list(), before);
}

unsafe extern "C" {
    #[link_name = "__rseq_offset"]
    static RSEQ_OFFSET: isize;
    #[link_name = "__rseq_size"]
    static RSEQ_SIZE: u32;
}

/// The thread's area of restartable sequences, if the C library has registered one.
fn rseq() -> Option<*mut u64> {
    let pointer: usize;
    // SAFETY: reads the thread pointer, and variables of the C library.
    unsafe {
        asm!("mov {}, fs:0", out(reg) pointer);
        (RSEQ_SIZE != 0).then(|| (pointer as *mut u64).byte_offset(RSEQ_OFFSET))
    }
}

#[test]
fn restartable_sequence_of_a_failed_request_is_over() {
    let Some(area) = rseq() else {
        return;
    };
    failure(domain(), |request| {
        // Nothing interrupts the thread between this and the failure, or the kernel ends the process, as without
        // the library: a sequence that is not there.
        // SAFETY: the second word is the sequence.
        unsafe { area.wrapping_add(1).write_volatile(black_box(8)) };
        request.fail("in the middle")
    });
    // SAFETY: as above.
    assert_eq!(unsafe { area.wrapping_add(1).read_volatile() }, 0);
}

#[test]
fn unregistered_restartable_sequences_are_registered_again() {
    const SIGNATURE: u32 = 0x5305_3053;
    const UNREGISTER: c_int = 1;
    let Some(area) = rseq() else {
        return;
    };
    // SAFETY: the first word is the number of the CPU, twice.
    let is_registered = || unsafe { area.cast::<i32>().wrapping_add(1).read_volatile() } >= 0;
    if !is_registered() {
        return;
    }
    in_failing_requests(
        || {
            // SAFETY: takes back what the C library has registered; the size is that of the first version.
            let done = unsafe { libc::syscall(libc::SYS_rseq, area, 32, UNREGISTER, SIGNATURE) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        },
        |_| assert!(is_registered()),
    );
}

fn errno() -> c_int {
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}

/// Changes `errno`.
fn fail_a_call() {
    // SAFETY: closes nothing.
    assert_eq!(unsafe { libc::close(-1) }, -1);
}

#[test]
fn errno_of_the_function_is_kept_on_every_way_out() {
    type End = fn(&Request) -> Result<(), ()>;
    let ends: [End; 4] = [
        |_| Ok(()),
        |_| Err(()),
        |request| request.fail("on purpose"),
        |_| {
            null_write();
            Ok(())
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        for (writes, defers) in [(false, false), (true, false), (false, true), (true, true)] {
            let work = |request: &Request| {
                if writes {
                    request.alloc(1u8).unwrap();
                }
                if defers {
                    request.defer(fail_a_call).unwrap();
                }
                set_errno(libc::EAGAIN);
                end(request)
            };
            let check = || assert_eq!(errno(), libc::EAGAIN, "end {number}, {writes}, {defers}");
            let domain = domain();
            set_errno(0);
            let _ = domain.run(work);
            check();
            let mut task = Task::new(domain, Options::default()).unwrap();
            for is_last in [false, true] {
                set_errno(0);
                let _ = task.step(|request| match work(request) {
                    Ok(()) if is_last => Step::Done(()),
                    Ok(()) => Step::Suspend,
                    Err(()) => Step::GiveUp,
                });
                if !task.is_over() || is_last {
                    check();
                }
                if task.is_over() {
                    break;
                }
            }
            let _ = domain.run(|request| {
                let ticket = request.ticket().unwrap();
                let member = std::thread::spawn(move || {
                    let _ = ticket.join(|request| {
                        set_errno(libc::EAGAIN);
                        end(request)
                    });
                    errno()
                });
                assert_eq!(member.join().unwrap(), libc::EAGAIN);
                Ok::<_, ()>(())
            });
        }
    }
}

#[test]
fn name_scheduling_and_timers_of_a_failed_request_stay() {
    let name = || {
        let mut name = [0u8; 16];
        // SAFETY: room for a name.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        name
    };
    // SAFETY: this thread's alone.
    let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, libc::gettid().cast_unsigned()) };
    failure(domain(), |_| {
        // SAFETY: a C string; changes this thread's alone, and a timer that ends long after the test.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"alice".as_ptr());
            libc::setpriority(libc::PRIO_PROCESS, libc::gettid().cast_unsigned(), 5);
            libc::alarm(10_000);
        }
        null_write();
    });
    assert!(name().starts_with(b"alice\0"));
    assert_eq!(nice(), 5);
    // SAFETY: takes the timer back.
    assert_ne!(unsafe { libc::alarm(0) }, 0);
}

struct Broken;

impl Drop for Broken {
    fn drop(&mut self) {
        null_write();
    }
}

#[test]
fn panic_that_was_cut_short_costs_no_later_request() {
    let (domain, other) = (domain(), domain());
    for _ in 0..3 {
        let cut = failure(domain, |_| {
            let _broken = Broken;
            panic!("cut short");
        });
        assert_eq!(cut.kind, Kind::Memory);
        success(other, |_| ());
        let panicked = failure(other, |_| panic!("another one"));
        assert_eq!(
            (panicked.kind, &*panicked.message),
            (Kind::Panic, "another one")
        );
    }
}

#[test]
fn credentials_of_the_thread_are_put_back_by_a_defer() {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: only this thread's; a user that is none changes nothing.
    let current = || unsafe { libc::setfsuid(libc::uid_t::MAX) }.cast_unsigned();
    let before = current();
    if before != 0 {
        eprintln!("skipped: only root can work for another user");
        return;
    }
    failure(domain(), |request| {
        let undo = move || {
            // SAFETY: as above.
            unsafe { libc::setfsuid(before) };
        };
        request.defer(undo).unwrap();
        // SAFETY: as above.
        unsafe { libc::setfsuid(NOBODY) };
        assert_eq!(current(), NOBODY);
        null_write();
    });
    assert_eq!(current(), before);
}
