/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * vmsrs.h - Guest library of VMSRS: requests whose memory errors cost only
 * themselves.
 *
 * Generated from the crate in guest-lib/: do not edit, run `make headers`.
 *
 * A server keeps the state of each user in a domain and does each piece of work
 * as a request. When a request crashes, overflows a buffer, frees twice or
 * hangs, what it wrote to domains is discarded, its locks are released, and the
 * thread goes on with the next request.
 *
 *	static int visit(vmsrs_request *request, void *argument)
 *	{
 *		vmsrs_domain *user = argument;
 *		int *visits = vmsrs_root(user);
 *
 *		if (!visits) {
 *			visits = vmsrs_alloc_zeroed(user, sizeof(*visits));
 *			if (!visits || vmsrs_set_root(user, visits))
 *				return -1;
 *		}
 *		return ++*visits;
 *	}
 *
 *	vmsrs_app *app;
 *	vmsrs_domain *alice;
 *	int visits, code;
 *
 *	code = vmsrs_open("shop", &app);
 *	if (!code)
 *		code = vmsrs_domain_open(app, "alice", 5, &alice);
 *	if (!code)
 *		code = vmsrs_run(alice, visit, alice, &visits);
 *	if (code)
 *		fprintf(stderr, "%s\n", vmsrs_strerror(code));
 *
 * Return codes. Functions that return an int give 0 or a negative value of enum
 * vmsrs_code; unless its description says otherwise, a call that gives an error
 * has changed nothing. Handles and output pointers may be null: that is
 * VMSRS_EINVAL. errno is set with VMSRS_EDEVICE and VMSRS_ESYSTEM, for which
 * vmsrs_refused() tells what was tried, and by functions that return blocks of a
 * domain or the size of one. Calls that run a request leave it as the function of
 * the request did, unless they return one of these codes. After other calls it has
 * no meaning.
 *
 * Handles. Apps and domains are never closed: any thread may use them until the
 * process ends. Those of a deleted domain are good for VMSRS_EDELETED. A request is
 * valid only in the function that gets it, on the thread that runs it; other threads
 * get VMSRS_ENOREQUEST for it. A task may be used by one thread at a time, a ticket
 * by any number. Blocks keep their addresses in every process and after a restart,
 * until they are freed.
 *
 * Threads. Functions that take neither a request nor a task may be called by any
 * thread at any time.
 *
 * Nesting. Requests do not nest: on a thread that has a request, or runs
 * deferred functions, vmsrs_run(), vmsrs_run_with(), vmsrs_join(),
 * vmsrs_task_step(), vmsrs_guard() and vmsrs_guard_variables() return
 * VMSRS_ENESTED.
 *
 * Failures. A request that fails is aborted at any instruction, and its stack
 * frames are abandoned: no destructors run, mutexes stay locked, memory and
 * descriptors outside of domains leak. In requests, guard shared state with
 * domains, undo the rest by vmsrs_defer(), and lend no local variables to other
 * threads. Functions that find damage fail the request and do not return.
 * Without protection (see vmsrs_protection()) what a request wrote stays.
 *
 * Forks. A child that is forked outside of a request has the apps and domains
 * and may run requests of its own. One that is forked in a request has no part
 * in it: calls that need a request give VMSRS_ENOREQUEST there, and the call
 * that runs the request returns VMSRS_EFORKED, as do the tickets and tasks of
 * the parent. A child that shares memory, by vfork() or clone() with CLONE_VM, has
 * no part in the request either: an error there, abort(), exit() or vmsrs_fail()
 * ends the child alone. It should only call _exit() or exec. vmsrs_commit() gives
 * VMSRS_ENOREQUEST there, and on a stack of its own every call that needs a request. On
 * the parent's stack, as after vfork(), other calls work on the parent's request as the
 * parent would, which waits; an error in the middle of one costs that request.
 *
 * Exits. Requests may be run in exit handlers, and in destructors of keys and of
 * thread-local variables. A request that calls exit() fails by that.
 *
 * Mutexes in domains. Those between threads of one process work. Process-shared ones
 * (PTHREAD_PROCESS_SHARED) do not: the kernel cannot pin pages of domains, so a
 * contended one gets EFAULT, and glibc aborts the request. Between processes use the
 * lock of a domain, by vmsrs_enter().
 *
 * Signals. vmsrs_open_guard() alone may be called in signal handlers. A handler that
 * runs in the middle of a request is a part of it: an error there fails the request,
 * and one that leaves it by siglongjmp() ends it.
 */

#ifndef VMSRS_H
#define VMSRS_H

#include <stddef.h>
#include <stdint.h>

/** The version of the library that this header belongs to. */
#define VMSRS_VERSION		"0.1.0"
#define VMSRS_VERSION_MAJOR	0
#define VMSRS_VERSION_MINOR	1
#define VMSRS_VERSION_PATCH	0

#if defined(__GNUC__) || defined(__clang__)
#define VMSRS_MUST_USE		__attribute__((warn_unused_result))
#define VMSRS_NORETURN		__attribute__((noreturn, cold))
#define VMSRS_TEXT		__attribute__((const, returns_nonnull))
#define VMSRS_ALLOC		__attribute__((malloc, alloc_size(2), \
					       assume_aligned(16), \
					       warn_unused_result))
#define VMSRS_ALLOC_ALIGNED	__attribute__((malloc, alloc_size(2), \
					       alloc_align(3), \
					       warn_unused_result))
#define VMSRS_REALLOC		__attribute__((alloc_size(3), \
					       assume_aligned(16), \
					       warn_unused_result))
#else
#define VMSRS_MUST_USE
#define VMSRS_NORETURN
#define VMSRS_TEXT
#define VMSRS_ALLOC
#define VMSRS_ALLOC_ALIGNED
#define VMSRS_REALLOC
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Types
 */

/** An app: a server program, known by its name. */
typedef struct vmsrs_app vmsrs_app;

/**
 * A domain: the state of one user, or a piece of shared state, with a heap, a
 * root pointer and a lock of its own.
 */
typedef struct vmsrs_domain vmsrs_domain;

/** A running request, as one of its threads has it. */
typedef struct vmsrs_request vmsrs_request;

/** A request in steps, each on any thread. */
typedef struct vmsrs_task vmsrs_task;

/*
 * Return codes
 */

/** What functions return. */
enum vmsrs_code {
	/** Done. */
	VMSRS_OK = 0,
	/**
	 * The request failed: its error was suppressed and everything it wrote
	 * was discarded. vmsrs_last_failure() has the details.
	 */
	VMSRS_EFAILED = -1,
	/**
	 * An argument is invalid: a null pointer, a value out of range, an
	 * unknown flag, or a reserved field that is not 0.
	 */
	VMSRS_EINVAL = -2,
	/**
	 * The device exists but cannot be used (permissions, version, or the
	 * host is broken). errno has the reason.
	 */
	VMSRS_EDEVICE = -3,
	/**
	 * The heap of the domain was written by a library with another layout.
	 */
	VMSRS_ELAYOUT = -4,
	/**
	 * The calling thread has no request, or request is not the one that it
	 * runs.
	 */
	VMSRS_ENOREQUEST = -5,
	/** The request does not hold the domain. */
	VMSRS_ENOTHELD = -6,
	/** The calling thread has a request already. Requests do not nest. */
	VMSRS_ENESTED = -7,
	/** The request holds the domain already. */
	VMSRS_EHELD = -8,
	/**
	 * A limit is reached: 256 domains, 256 defers or 256 threads of a
	 * request, or 4096 suspended tasks of a process.
	 */
	VMSRS_ELIMIT = -9,
	/** The domain belongs to another app than the request. */
	VMSRS_EAPP = -10,
	/** The lock of the domain did not become free in time. */
	VMSRS_ETIMEOUT = -11,
	/** Out of memory: the window or the domain is full. */
	VMSRS_ENOMEM = -12,
	/** The domain that the request was begun with is held to its end. */
	VMSRS_EMAIN = -13,
	/**
	 * Committed, but the host did not seal the commit in time. It will,
	 * once it answers.
	 */
	VMSRS_EUNSEALED = -14,
	/** The process was forked, and the request belongs to its parent. */
	VMSRS_EFORKED = -15,
	/** The operating system or the driver refused. errno has the reason. */
	VMSRS_ESYSTEM = -16,
	/**
	 * The holder of the domain waits for a domain that this request holds.
	 * The request keeps what it holds: leave some of it and try again, or
	 * give up.
	 */
	VMSRS_EDEADLOCK = -17,
	/**
	 * The host lost content of the domain to broken memory, and the domain
	 * has no mirror.
	 */
	VMSRS_EDAMAGED = -18,
	/** The request of the ticket or task has ended. */
	VMSRS_EENDED = -19,
	/**
	 * Memory cannot be guarded: there are no protection keys, or requests
	 * use them all.
	 */
	VMSRS_ENOKEYS = -20,
	/**
	 * The variables of the program cannot be guarded: it binds functions
	 * lazily, has the library linked in statically, or has an unusual
	 * layout.
	 */
	VMSRS_EVARIABLES = -21,
	/**
	 * More requests of the domain have failed than its budget allows: it is
	 * refused for a while.
	 */
	VMSRS_EQUARANTINE = -22,
	/**
	 * Programs with the thread or the memory sanitizer cannot use a device:
	 * the shadow memory of these lies at the addresses of the apps.
	 */
	VMSRS_ESANITIZER = -23,
	/**
	 * The domain was deleted, by this process or another one. Opening its
	 * key makes a new domain.
	 */
	VMSRS_EDELETED = -24,
	/**
	 * Bytes that are to be leased are not as they were committed: the
	 * request has changed them.
	 */
	VMSRS_EUNCOMMITTED = -25,
};

/**
 * Describes a return code.
 *
 * Like strerror(), but thread-safe: the string is constant and never freed.
 *
 * @param code A value of enum vmsrs_code; any other is described as unknown.
 * @return One sentence without a full stop, never null.
 */
VMSRS_TEXT const char *vmsrs_strerror(int code);

/**
 * Tells what the operating system or the driver refused; errno has the reason.
 *
 * @return What the last call of the calling thread that returned VMSRS_ESYSTEM
 *     or VMSRS_EDEVICE had tried, such as "registering the thread"; empty if
 *     there was none, never null. The next such call of the thread overwrites
 *     it.
 */
const char *vmsrs_refused(void);

/*
 * Opening apps and domains
 */

/** What happens to memory when a request fails. */
enum vmsrs_protection_level {
	/** No device: errors are suppressed, but nothing is restored. */
	VMSRS_PROTECTION_NONE = 0,
	/** The driver and the host keep versions of every page. */
	VMSRS_PROTECTION_FULL = 1,
};

/** Flags of vmsrs_domain_open_with(). */
enum vmsrs_domain_flag {
	/**
	 * The host keeps a second copy of each sealed page, and repairs from it
	 * a page whose memory went bad. The copies take as much of the window
	 * as the pages.
	 */
	VMSRS_MIRROR = 1,
};

/**
 * Opens an app, and creates it if it is new.
 *
 * The first call in a process installs handlers for SIGSEGV, SIGBUS, SIGFPE,
 * SIGILL, SIGTRAP and SIGABRT; and for SIGPIPE, SIGXFSZ and SIGSYS if they have
 * the default effect then, which ends the process. Handlers that are installed
 * later replace the library's. Opening a name again gives the same app. Without
 * a device the app works without protection (see vmsrs_protection()), and a
 * line on stderr says so.
 *
 * Call it from any thread, outside of requests.
 *
 * @param name Name of 1 to 64 bytes.
 * @param app Set to the app on success. It is never closed.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or name is empty or too long.
 * @retval VMSRS_EDEVICE The device exists but cannot be used; see errno.
 * @retval VMSRS_ESANITIZER The device exists, and the program has the thread or
 *     the memory sanitizer.
 * @retval VMSRS_ESYSTEM See errno; EEXIST if the addresses of the app are
 *     occupied.
 */
VMSRS_MUST_USE int vmsrs_open(const char *name, struct vmsrs_app **app);

/**
 * Tells what happens to memory when a request fails.
 *
 * @param app The app.
 * @retval VMSRS_PROTECTION_FULL What the request wrote is discarded.
 * @retval VMSRS_PROTECTION_NONE It stays.
 * @retval VMSRS_EINVAL app is null.
 */
int vmsrs_protection(const struct vmsrs_app *app);

/**
 * Opens a domain of an app, and creates it if it is new.
 *
 * Opening a key again gives the same domain. Call it from any thread, outside
 * of requests.
 *
 * @param app The app.
 * @param key Any bytes.
 * @param length Length of the key, 1 to 64.
 * @param domain Set to the domain on success. It is never closed.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or length is out of range.
 * @retval VMSRS_ELAYOUT The heap of the domain has another layout.
 * @retval VMSRS_ENOMEM The window is full.
 * @retval VMSRS_EDAMAGED Content of the domain is lost; use another key.
 * @retval VMSRS_ESYSTEM See errno.
 */
VMSRS_MUST_USE
int vmsrs_domain_open(const struct vmsrs_app *app, const void *key,
		      size_t length, struct vmsrs_domain **domain);

/**
 * Opens a domain with options.
 *
 * As vmsrs_domain_open(). The options of a domain that is already open in this
 * process are ignored, and a domain that has a mirror keeps it.
 *
 * @param app The app.
 * @param key Any bytes.
 * @param length Length of the key, 1 to 64.
 * @param flags VMSRS_MIRROR or 0.
 * @param domain Set to the domain on success.
 * @retval VMSRS_EINVAL Also for an unknown flag.
 * @retval VMSRS_ENOMEM Also if the window has no room for the mirror.
 * @return Otherwise as vmsrs_domain_open().
 */
VMSRS_MUST_USE
int vmsrs_domain_open_with(const struct vmsrs_app *app, const void *key,
			   size_t length, uint32_t flags,
			   struct vmsrs_domain **domain);

/**
 * Deletes a domain: its content and its key are gone, for all processes.
 *
 * Waits for the request that holds the domain, as long as a request waits for a
 * lock. Its pages go back to the window, and what other processes have mapped
 * of them is gone at once. Opening the key again makes a new domain.
 *
 * Requests that wait for the domain, and all later ones, get VMSRS_EDELETED.
 * The handle stays valid for that. Pointers into the domain lead nowhere, or
 * later into another domain.
 *
 * A deletion counts like a commit: after a crash of the guest the domain is
 * there as a whole or gone as a whole. vmsrs_flush() waits until it is gone for
 * good.
 *
 * @param domain The domain.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain is null.
 * @retval VMSRS_ENESTED Called in a request or a deferred function.
 * @retval VMSRS_ETIMEOUT The domain did not become free in time.
 * @retval VMSRS_EDELETED It is deleted already.
 * @retval VMSRS_ESYSTEM See errno.
 */
VMSRS_MUST_USE int vmsrs_domain_delete(const struct vmsrs_domain *domain);

/**
 * Empties a domain: deletes it, and opens its key again, with a mirror if it
 * had one.
 *
 * The old handle is that of a deleted domain from then on, in all processes. An
 * invariant and a budget of the domain are to be set again. After a crash of
 * the guest the domain is there with all that it had, or empty.
 *
 * @param domain The domain; set to the new one on success.
 * @return As vmsrs_domain_delete(), or as vmsrs_domain_open(): it is deleted
 *     then.
 */
VMSRS_MUST_USE int vmsrs_domain_clear(struct vmsrs_domain **domain);

/** How large a domain is, and how it is. */
typedef struct vmsrs_domain_info_t {
	/** Pages of 4 KiB that it has of the window. */
	uint32_t pages;
	/** Pages of these that were ever committed. */
	uint32_t committed;
	/** Committed pages whose newest version is not sealed yet. */
	uint32_t unsealed;
	/**
	 * Pages that a request has written and not committed, and those that
	 * stay writable between requests.
	 */
	uint32_t drafts;
	/**
	 * Milliseconds for which it is refused for its failures; 0 if it is
	 * not.
	 */
	uint64_t quarantine_ms;
} vmsrs_domain_info_t;

/**
 * Tells how large a domain is, and how it is. Can be called by any thread, also
 * in requests.
 *
 * Without protection all pages count as committed.
 *
 * @param domain The domain.
 * @param info Filled in on success.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_EDELETED
 * @retval VMSRS_ESYSTEM See errno.
 */
VMSRS_MUST_USE
int vmsrs_domain_info(const struct vmsrs_domain *domain,
		      struct vmsrs_domain_info_t *info);

/*
 * Running requests
 */

/** Flags of struct vmsrs_options; vmsrs_commit() takes VMSRS_SEAL. */
enum vmsrs_flag {
	/** Return once the host has sealed the commit. */
	VMSRS_SEAL = 1,
	/**
	 * Audit the whole of every domain before it is committed, not only the
	 * pages that the request has written.
	 */
	VMSRS_AUDIT_WHOLE = 2,
	/**
	 * Keep what the request takes from its arena (vmsrs_arena_alloc(),
	 * vmsrs_input()) as it is until the thread's next request begins, or
	 * the next step: for functions that are called after the commit, and
	 * for what follows the request. Behind each block is a red zone then,
	 * and a request that has overwritten one fails. Threads that join the
	 * request have their arenas emptied as they leave.
	 */
	VMSRS_KEEP_ARENA = 4,
};

/** How a request is run. All zero is the default. */
typedef struct vmsrs_options {
	/** Of VMSRS_SEAL, VMSRS_AUDIT_WHOLE and VMSRS_KEEP_ARENA any, or 0. */
	uint32_t flags;
	/** Milliseconds that the request may take; 0 for no limit. */
	uint32_t deadline_ms;
	/**
	 * Milliseconds to wait for the lock of a domain; 0 for the deadline, or
	 * 10 s if there is none.
	 */
	uint32_t lock_timeout_ms;
	/**
	 * Bytes of stack that the function needs, at most 1 GiB; 0 for the
	 * usual size of 256 KiB. A thread that has less gets a larger stack,
	 * and keeps it.
	 */
	uint32_t stack_bytes;
	/**
	 * Bytes of arena that the function needs, at most 64 GiB; 0 for the
	 * usual VMSRS_ARENA_SIZE. A thread that has less gets a larger arena,
	 * and keeps it. It takes addresses, and memory for what is used.
	 */
	uint64_t arena_bytes;
} vmsrs_options;

/**
 * The work of a request.
 *
 * It runs on a stack of its own and may be aborted at any instruction (see
 * "Failures" above). One that is left by longjmp() fails when the thread calls
 * the library next; pthread_exit() in it fails the request.
 *
 * @param request The request: valid until the function returns, on this thread
 *     only.
 * @param argument What the caller passed.
 * @return A result of 0 or more, or a negative value to give the request up:
 *     what it wrote is discarded then.
 */
typedef int (*vmsrs_request_fn)(struct vmsrs_request *request, void *argument);

/**
 * Runs a function as a request that holds a domain.
 *
 * Waits for the lock of the domain, runs the function and audits the heap of
 * each domain that the request has written to. Then everything it wrote is
 * committed, or, if the function returned a negative value, discarded, and its
 * defers are run.
 *
 * If the request fails, everything it wrote is discarded, its locks are
 * released, its defers are run, and this returns VMSRS_EFAILED; the thread goes
 * on. errno is as the function left it, unless this returns VMSRS_ESYSTEM.
 *
 * @param domain The domain. It is held to the end of the request.
 * @param function The work.
 * @param argument Passed to the function.
 * @param result Set to what the function returned, if it is not null and the
 *     code is VMSRS_OK or VMSRS_EUNSEALED.
 * @retval VMSRS_OK The function returned; what it wrote is committed if *result
 *     is not negative.
 * @retval VMSRS_EFAILED The request failed; see vmsrs_last_failure().
 * @retval VMSRS_EUNSEALED Committed, but not sealed in time (with VMSRS_SEAL
 *     only).
 * @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed
 *     (with VMSRS_SEAL only).
 * @retval VMSRS_EINVAL A null pointer. The function was not run.
 * @retval VMSRS_ENESTED Called in a request or a deferred function. Not run.
 * @retval VMSRS_ETIMEOUT The domain did not become free in time. Not run.
 * @retval VMSRS_ELAYOUT The heap of the domain has another layout. Not run.
 * @retval VMSRS_EQUARANTINE Too many requests of the domain have failed
 *     (vmsrs_app_budget()). Not run.
 * @retval VMSRS_ESYSTEM See errno. Not run, or what it wrote could not be
 *     committed and was discarded.
 * @retval VMSRS_EFORKED This is the child of a fork in the function.
 */
VMSRS_MUST_USE
int vmsrs_run(const struct vmsrs_domain *domain, vmsrs_request_fn function,
	      void *argument, int *result);

/**
 * Runs a function as a request, with options.
 *
 * @param domain The domain. It is held to the end of the request.
 * @param options The options, or null for the defaults.
 * @param function The work.
 * @param argument Passed to the function.
 * @param result As in vmsrs_run().
 * @retval VMSRS_EINVAL Also for an unknown flag, or a stack of more than 1 GiB.
 * @return Otherwise as vmsrs_run().
 */
VMSRS_MUST_USE
int vmsrs_run_with(const struct vmsrs_domain *domain,
		   const struct vmsrs_options *options,
		   vmsrs_request_fn function, void *argument, int *result);

/**
 * The stack of the request that the calling thread runs.
 *
 * For code that looks at addresses of the stack: interpreters and parsers that
 * limit their depth by it, garbage collectors that scan it. What
 * pthread_getattr_np() says is another stack in a request.
 *
 * @param low Set to the lowest byte. Below it is a guard of 4 GiB.
 * @param high Set to the first byte after the highest one.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 */
VMSRS_MUST_USE int vmsrs_stack_bounds(void **low, void **high);

/**
 * Tells whether the calling thread works for a request.
 *
 * For code that is called in requests and outside of them: an allocator, a
 * logger, a wrapper of locks. Can be called anywhere.
 *
 * @return 1 in the function of a request, of a step or of a thread that has
 *     joined one; 0 elsewhere, in deferred functions too.
 */
VMSRS_MUST_USE int vmsrs_in_request(void);

/**
 * Commits everything that the request wrote so far. It goes on, keeps its
 * domains, and forgets its defers.
 *
 * That includes what other threads of the request are in the middle of writing.
 * If the audit finds damage, the request fails and this does not return.
 *
 * @param request The request.
 * @param flags VMSRS_SEAL or 0.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL request is null, or an unknown flag.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_EUNSEALED Committed, but not sealed in time.
 * @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed.
 * @retval VMSRS_ESYSTEM See errno. Nothing was committed.
 */
VMSRS_MUST_USE
int vmsrs_commit(const struct vmsrs_request *request, uint32_t flags);

/**
 * Waits until the host has sealed everything that was committed so far.
 *
 * @param app The app.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL app is null.
 * @retval VMSRS_EUNSEALED The host did not answer in time.
 * @retval VMSRS_ESYSTEM See errno; ENODEV if the host is broken.
 */
VMSRS_MUST_USE int vmsrs_flush(const struct vmsrs_app *app);

/*
 * Failures, and undoing what lies outside of domains
 */

/* vmsrs_protocol.h has macros of the same names and values. */
#ifndef VMSRS_PROTOCOL_H
/** Kinds of failures. The host's reports use the same numbers. */
enum vmsrs_kind {
	/**
	 * SIGSEGV or SIGBUS without a more precise kind, for example a null
	 * write.
	 */
	VMSRS_KIND_MEMORY = 1,
	/** SIGFPE, for example an integer division by zero. */
	VMSRS_KIND_ARITHMETIC = 2,
	/** SIGILL or SIGTRAP. */
	VMSRS_KIND_INSTRUCTION = 3,
	/**
	 * SIGABRT: failed assertion, heap check of glibc, stack protector, C++
	 * terminate, Rust abort. SIGPIPE, SIGXFSZ or SIGSYS, where the server
	 * has not said what they are to do.
	 */
	VMSRS_KIND_ABORT = 4,
	/** The request ran into the guard below its stack. */
	VMSRS_KIND_STACK_OVERFLOW = 5,
	/** A write to a page of a domain that the request does not hold. */
	VMSRS_KIND_FOREIGN_WRITE = 6,
	/** A write to a sealed frame, stopped by the host. */
	VMSRS_KIND_SEALED_WRITE = 7,
	/** A block was freed twice. */
	VMSRS_KIND_DOUBLE_FREE = 8,
	/** A pointer that is not a block of the domain was freed. */
	VMSRS_KIND_FOREIGN_FREE = 9,
	/** Bytes after the end of a block were overwritten. */
	VMSRS_KIND_RED_ZONE = 10,
	/** A freed block was written to. */
	VMSRS_KIND_USE_AFTER_FREE = 11,
	/** The metadata of the heap is damaged. */
	VMSRS_KIND_HEAP_CORRUPT = 12,
	/** A Rust panic left the request. */
	VMSRS_KIND_PANIC = 13,
	/** The request missed its deadline. */
	VMSRS_KIND_DEADLINE = 14,
	/** A thread of the request ended inside it, or left it by longjmp(). */
	VMSRS_KIND_THREAD_DEATH = 15,
	/** The process ended with the request in flight. */
	VMSRS_KIND_PROCESS_DEATH = 16,
	/** The pool of frames ran dry while the request wrote. */
	VMSRS_KIND_NO_FRAMES = 17,
	/**
	 * The server failed the request: vmsrs_fail(), or an invariant did not
	 * hold.
	 */
	VMSRS_KIND_INVARIANT = 18,
	/**
	 * A read or write of a page that another request was writing, stopped
	 * by a protection key.
	 */
	VMSRS_KIND_FOREIGN_DRAFT = 19,
	/**
	 * The content of a sealed frame did not match its checksum. Reported by
	 * the host only.
	 */
	VMSRS_KIND_CHECKSUM = 20,
	/** Memory of the host is broken. Reported by the host only. */
	VMSRS_KIND_POISON = 21,
	/** The request touched a page whose content the host has lost. */
	VMSRS_KIND_DAMAGED = 22,
	/**
	 * So many requests of the domain have failed that it is refused for a
	 * while. In incidents only.
	 */
	VMSRS_KIND_QUARANTINE = 23,
};
#endif

/** A failed request. */
typedef struct vmsrs_failure {
	/** A value of enum vmsrs_kind. */
	uint32_t kind;
	/** The signal, or 0. */
	int32_t signal;
	/** si_code of the signal, or 0. */
	int32_t code;
	/** Pages discarded. */
	uint32_t drafts;
	/**
	 * Number of the incident, for "vmsrs incidents" on the host; 0 if there
	 * is none.
	 */
	uint64_t incident;
	/** Address of the access or of the block, or 0. */
	uint64_t address;
	/** Instruction pointer at the error, or 0. */
	uint64_t instruction;
	/** Nanoseconds from the detection to the end of the discard. */
	uint64_t recovery_ns;
	/** Deferred functions that failed and were aborted. */
	uint32_t defers_failed;
	/** 0. */
	uint32_t reserved;
	/** Message of a panic or of vmsrs_fail(); may be empty. */
	char message[128];
} vmsrs_failure;

/**
 * Describes the last failed request of the calling thread: the one for which
 * vmsrs_run(), vmsrs_join() or vmsrs_task_step() returned VMSRS_EFAILED.
 *
 * @param failure Filled in on success.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL failure is null.
 * @retval VMSRS_ENOREQUEST No request of this thread has failed.
 */
int vmsrs_last_failure(struct vmsrs_failure *failure);

/**
 * Names a kind of failure: "memory", "double free". The tools of the host print
 * it with hyphens: "double-free".
 *
 * @param kind A value of enum vmsrs_kind; the name of any other is "unknown".
 * @return A constant string, never null.
 */
VMSRS_TEXT const char *vmsrs_kind_name(uint32_t kind);

/**
 * Fails the request of the calling thread, with the kind VMSRS_KIND_INVARIANT.
 *
 * Does not return: the call that runs the request returns VMSRS_EFAILED.
 * Without a request it aborts the process.
 *
 * @param message Text for vmsrs_last_failure() and the host's incident, cut off
 *     after 127 bytes; or null.
 */
void vmsrs_fail(const char *message) VMSRS_NORETURN;

/**
 * Undoes something outside of domains: closes a descriptor, removes a file.
 *
 * It runs outside of the request, on the thread that ends it. It cannot write
 * to domains or run requests, and an error in it cuts short this function
 * alone.
 *
 * @param argument What the caller passed.
 */
typedef void (*vmsrs_defer_fn)(void *argument);

/**
 * Registers a function that is called if the request fails or is given up. The
 * newest is called first. A request that is committed forgets them.
 *
 * @param request The request.
 * @param function Called with argument, which must live until then.
 * @param argument Passed to the function.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ELIMIT 256 are registered.
 */
VMSRS_MUST_USE
int vmsrs_defer(const struct vmsrs_request *request, vmsrs_defer_fn function,
		void *argument);

/**
 * Does what has to come after a request's commit: sends an answer, wakes
 * another thread.
 *
 * It runs outside of the request, on the thread that ends it, like any other
 * code there: it may run requests, and an error in it is the process's own. It
 * has to return.
 *
 * @param argument What the caller passed.
 */
typedef void (*vmsrs_on_commit_fn)(void *argument);

/**
 * Registers a function that is called once the request is committed: in the
 * order of registration, before the call that has run the request returns. A
 * request that fails or is given up forgets them, but for those before a
 * vmsrs_commit(), which are called then.
 *
 * @param request The request.
 * @param function Called with argument, which must live until then: not on the
 *     request's stack; in its arena with VMSRS_KEEP_ARENA.
 * @param argument Passed to the function.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ELIMIT 262144 are registered.
 * @retval VMSRS_ESYSTEM There is no memory for the list; see errno.
 */
VMSRS_MUST_USE
int vmsrs_on_commit(const struct vmsrs_request *request,
		    vmsrs_on_commit_fn function, void *argument);

/**
 * Has bytes outside of domains be what they are now if the request fails or is
 * given up: they are saved, and copied back then. vmsrs_commit() forgets the
 * copy.
 *
 * For small variables that requests change: a count, the state of a connection.
 * They are copied back before the domains of the request are free, unless other
 * threads have worked for it, or it has missed its deadline: then a little
 * later. What other threads have written to the same bytes since the call is
 * lost too: so they are the request's alone, or guarded by a domain or a mutex
 * that it holds to its end.
 *
 * @param request The request.
 * @param address The bytes, which can be written until the request has ended.
 * @param size How many.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, no bytes, or some lie in a domain.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ELIMIT More than 64 KiB in a request, with 32 bytes for each
 *     call.
 * @retval VMSRS_ESYSTEM There is no memory for the copies, or a filter of
 *     system calls refuses process_vm_writev(); see errno.
 */
VMSRS_MUST_USE
int vmsrs_keep(const struct vmsrs_request *request, void *address, size_t size);

/**
 * Gives the request a descriptor: it is closed if the request fails or is given
 * up.
 *
 * If the request is committed, the descriptor stays open. Counts as a defer.
 *
 * Before the request closes it itself, it has to be taken back
 * (vmsrs_disown_fd()): another thread may get its number for another file.
 * Without that it is closed only if that file looks the same, which another
 * descriptor of the same file does, and any anonymous one (eventfd, epoll,
 * timerfd).
 *
 * @param request The request.
 * @param fd The descriptor.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL request is null, or fd is not open.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ELIMIT 256 are registered, with those of vmsrs_defer().
 */
VMSRS_MUST_USE int vmsrs_own_fd(const struct vmsrs_request *request, int fd);

/**
 * Takes back a descriptor that vmsrs_own_fd() has given to the request: it
 * stays as it is.
 *
 * @param request The request.
 * @param fd The descriptor.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL request is null, or does not own fd.
 * @retval VMSRS_ENOREQUEST
 */
VMSRS_MUST_USE int vmsrs_disown_fd(const struct vmsrs_request *request, int fd);

/*
 * Memory
 */

/**
 * Reads the root pointer of a domain, from which its data is reached.
 *
 * The request should hold the domain: otherwise another request may change or
 * free what the pointer leads to, and pages that the other request is writing
 * cannot be read.
 *
 * @param domain The domain.
 * @return The root pointer; null if it was never set or domain is null.
 */
void *vmsrs_root(const struct vmsrs_domain *domain);

/**
 * Sets the root pointer of a domain. It is committed and discarded like all its
 * data.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param root Any value; usually a block of the domain.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain is null.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 */
VMSRS_MUST_USE
int vmsrs_set_root(const struct vmsrs_domain *domain, void *root);

/**
 * Allocates a block in a domain.
 *
 * The block is aligned to 16 bytes and not zeroed. Others see it when the
 * request commits; if the request fails, it is gone. All threads of a request
 * may allocate and free at the same time.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param size Bytes. 0 gives a block of its own, too.
 * @return The block, or null with errno: ENOMEM (window or domain full, or size
 *     too large), EPERM (no request, or it does not hold the domain), EINVAL
 *     (domain is null), or what the driver said.
 */
VMSRS_ALLOC void *vmsrs_alloc(const struct vmsrs_domain *domain, size_t size);

/**
 * Allocates a block in a domain, filled with zeros.
 *
 * Pages of a block of 64 KiB or more that are zero already are not written.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param size Bytes.
 * @return As vmsrs_alloc().
 */
VMSRS_ALLOC
void *vmsrs_alloc_zeroed(const struct vmsrs_domain *domain, size_t size);

/**
 * Allocates an aligned block in a domain.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param size Bytes.
 * @param alignment A power of two, at most 4096. At least 16 is used.
 * @return As vmsrs_alloc(); EINVAL also for another alignment.
 */
VMSRS_ALLOC_ALIGNED
void *vmsrs_alloc_aligned(const struct vmsrs_domain *domain, size_t size,
			  size_t alignment);

/**
 * Changes the size of a block in a domain, in place or by moving it.
 *
 * A block that moves is aligned to 16 bytes. A pointer that is not a live block
 * fails the request, as in vmsrs_free().
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param block The block, not to be used after success; null allocates.
 * @param size Bytes. 0 does not free the block.
 * @return As vmsrs_alloc(). On an error the block is unchanged.
 */
VMSRS_REALLOC
void *vmsrs_realloc(const struct vmsrs_domain *domain, void *block,
		    size_t size);

/**
 * Frees a block of a domain.
 *
 * In a request that holds the domain, a pointer that is not a live block fails
 * the request (VMSRS_KIND_DOUBLE_FREE, VMSRS_KIND_FOREIGN_FREE), and so does a
 * block that was written past its end (VMSRS_KIND_RED_ZONE); this does not
 * return then.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param block The block; null does nothing.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain is null.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 */
int vmsrs_free(const struct vmsrs_domain *domain, void *block);

/**
 * Tells how many bytes of a block may be used.
 *
 * That is what was asked for: the bytes that follow are a red zone. As in
 * vmsrs_free(), a pointer into a domain of the request that is not a live block
 * fails the request.
 *
 * @param block A block of a domain that the request of the calling thread
 *     holds, or null.
 * @return The bytes. 0 for null; 0 with errno EPERM without a request, and for
 *     a pointer into none of its domains.
 */
size_t vmsrs_usable_size(const void *block);

/**
 * Tells whether an address is one of those that domains have.
 *
 * For a free() that gets blocks of domains and others. Only the number is
 * compared: there may be nothing at the address. Can be called anywhere.
 *
 * @param address Any address.
 * @return 1 if it is; 0 if it is not, and for null.
 */
VMSRS_MUST_USE int vmsrs_is_domain_address(const void *address);

/**
 * Tells the number of a domain in its app.
 *
 * All processes know the domain by it, for as long as it is not deleted. The
 * host's tools print it.
 *
 * @param domain The domain.
 * @return The number; UINT32_MAX for null.
 */
VMSRS_MUST_USE uint32_t vmsrs_domain_number(const struct vmsrs_domain *domain);

/**
 * Finds a domain that the request of the calling thread holds, by its number.
 *
 * For what is stored in a domain and has to find it, such as an allocator: the
 * address of a handle is another one in each process, the number is not.
 *
 * @param number A number from vmsrs_domain_number().
 * @return The domain; null if the request holds none with that number, or the
 *     thread has no request.
 */
VMSRS_MUST_USE struct vmsrs_domain *vmsrs_held_domain(uint32_t number);

/** Bytes of each chunk of a slab that are the library's. */
#define VMSRS_CHUNK_OVERHEAD 24

/**
 * Allocates a slab in a domain: chunks that the server gives out itself.
 *
 * A chunk begins every chunk_bytes bytes, of which the last
 * VMSRS_CHUNK_OVERHEAD before the next chunk are the library's. The server
 * keeps its free lists, and says what it gives out (vmsrs_slab_take()) and gets
 * back (vmsrs_slab_give()). So an overrun from one chunk into the next is
 * found, and so are writes to a free chunk.
 *
 * All chunks of a new slab are free. The first keep bytes of each are the
 * server's, for links, and undefined. The call writes to all chunks.
 *
 * vmsrs_free() and vmsrs_realloc() take no chunks: they fail the request.
 * vmsrs_usable_size() tells the size that a chunk was taken with.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param chunk_bytes Bytes from one chunk to the next: a multiple of 16, from
 *     32 to 32 MiB.
 * @param chunks How many; at least 1.
 * @param keep Bytes at the start of each chunk.
 * @return The first chunk, aligned to 16 bytes, or null with errno, as
 *     vmsrs_alloc(); EINVAL also for a wrong size.
 */
VMSRS_MUST_USE
void *vmsrs_slab_alloc(const struct vmsrs_domain *domain, size_t chunk_bytes,
		       size_t chunks, size_t keep);

/**
 * Says that a free chunk of a slab is in use.
 *
 * What the server kept of the chunk stays as it is; the rest is undefined.
 * Nothing but the chunk is written to. A pointer that is not a free chunk fails
 * the request (VMSRS_KIND_HEAP_CORRUPT): a list of the server is wrong. So does
 * a chunk that was written to since it was free (VMSRS_KIND_USE_AFTER_FREE);
 * this does not return then.
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param chunk The chunk.
 * @param size Bytes of it that are used: what follows them is a red zone.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain or chunk is null, or the chunk has fewer bytes.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 */
int vmsrs_slab_take(const struct vmsrs_domain *domain, void *chunk,
		    size_t size);

/**
 * Says that a chunk of a slab is free.
 *
 * Up to 1024 bytes after the first keep ones are filled with a pattern. A
 * pointer that is not a chunk in use fails the request, and so does a chunk
 * that was written past its size, as in vmsrs_free().
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param chunk The chunk.
 * @param keep Bytes at its start that stay, and that the server may write to:
 *     links of its list.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain or chunk is null, or the chunk has fewer bytes.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 */
int vmsrs_slab_give(const struct vmsrs_domain *domain, void *chunk,
		    size_t keep);

/**
 * Frees a slab, whatever its chunks are.
 *
 * A pointer that is not the first chunk of a slab fails the request, as in
 * vmsrs_free().
 *
 * @param domain A domain that the request of the calling thread holds.
 * @param slab What vmsrs_slab_alloc() has returned.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL domain or slab is null.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 */
int vmsrs_slab_free(const struct vmsrs_domain *domain, void *slab);

/** Bytes of arena that each thread of a request has. */
#define VMSRS_ARENA_SIZE ((16 * 1024) * 1024)

/**
 * Allocates scratch memory that lives until the request ends (for a thread that
 * has joined it: until it leaves; for a task: until the step ends), or until
 * the thread's next request begins (VMSRS_KEEP_ARENA).
 *
 * The memory is neither zeroed nor versioned, is aligned to 16 bytes, and
 * cannot be freed.
 *
 * @param request The request.
 * @param size Bytes.
 * @return The memory; null if the bytes of this thread are used up
 *     (VMSRS_ARENA_SIZE, or arena_bytes), or request is not the request of the
 *     calling thread. errno is not set.
 */
VMSRS_ALLOC
void *vmsrs_arena_alloc(const struct vmsrs_request *request, size_t size);

/**
 * Copies input into the arena so that its last byte is followed by a page that
 * nobody can touch: code that reads or writes behind it, by a length that is
 * longer than the packet, fails the request at the first byte.
 *
 * The copy may be written to, and lives as long as what vmsrs_arena_alloc()
 * gives. It begins wherever its size says, so at any alignment: larger numbers
 * in it are read by memcpy(). The first input of a request costs the copy
 * alone; each further one a system call, too, and a page of the arena.
 *
 * @param request The request.
 * @param bytes The input.
 * @param size How many bytes.
 * @return The copy; null if the arena is used up, bytes is null, or request is
 *     not the request of the calling thread. errno is not set.
 */
VMSRS_MUST_USE
void *vmsrs_input(const struct vmsrs_request *request, const void *bytes,
		  size_t size);

/*
 * Several domains in a request
 */

/**
 * Locks another domain of the app for the request.
 *
 * From now on all threads of the request may write to it. Domains can be
 * entered in any order; requests that enter them in the same order never
 * deadlock.
 *
 * @param request The request.
 * @param domain A domain of the same app.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_EHELD Held already, or another thread of the request waits for
 *     it.
 * @retval VMSRS_ELIMIT The request holds 256 domains.
 * @retval VMSRS_EAPP The domain belongs to another app.
 * @retval VMSRS_ETIMEOUT The domain did not become free in time.
 * @retval VMSRS_EDEADLOCK The holder waits for this request, directly or
 *     through others.
 * @retval VMSRS_ELAYOUT The heap of the domain has another layout.
 * @retval VMSRS_EQUARANTINE Too many requests of the domain have failed.
 * @retval VMSRS_ESYSTEM See errno.
 */
VMSRS_MUST_USE
int vmsrs_enter(const struct vmsrs_request *request,
		const struct vmsrs_domain *domain);

/**
 * Locks several domains of the app for the request, in an order that is the
 * same in all requests. Domains that the request holds already are skipped.
 *
 * Requests that enter all domains by one such call never deadlock, unless
 * through the domain that they were begun with.
 *
 * @param request The request.
 * @param domains The domains, in any order.
 * @param count How many, at most 65536.
 * @retval VMSRS_EINVAL A null pointer, or too many.
 * @return Otherwise as vmsrs_enter(). On an error the domains that this call
 *     has entered are left again.
 */
VMSRS_MUST_USE
int vmsrs_enter_all(const struct vmsrs_request *request,
		    const struct vmsrs_domain *const *domains, size_t count);

/**
 * Commits what the request wrote to a domain, and unlocks it.
 *
 * What is left before a failure stays committed. A domain that is not left is
 * held to the end of the request and committed together with the others. If the
 * audit finds damage, the request fails and this does not return.
 *
 * @param request The request.
 * @param domain A domain that it has entered.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 * @retval VMSRS_ENOTHELD
 * @retval VMSRS_EMAIN The request was begun with this domain.
 * @retval VMSRS_ESYSTEM See errno. The domain is still held.
 */
VMSRS_MUST_USE
int vmsrs_leave(const struct vmsrs_request *request,
		const struct vmsrs_domain *domain);

/*
 * Several threads in a request
 */

/**
 * Lets other threads join a request.
 *
 * Plain data: it can be copied and passed to any number of threads. After the
 * request has ended it is harmless. The fields are private to the library.
 */
typedef struct vmsrs_ticket_t {
	/** Private. */
	const void *state;
	/** Private. */
	const void *domain;
	/** Private. */
	uint64_t tag;
	/** Private. */
	uint32_t forks;
	/** Private. */
	uint32_t reserved;
} vmsrs_ticket_t;

/**
 * Makes a ticket of the request, with which other threads join it.
 *
 * @param request The request.
 * @param ticket Filled in on success.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ENOREQUEST
 */
VMSRS_MUST_USE
int vmsrs_ticket(const struct vmsrs_request *request,
		 struct vmsrs_ticket_t *ticket);

/**
 * Works for the request of a ticket on the calling thread.
 *
 * Runs the function on the request stack of this thread; it may do all that the
 * request may. The request ends only after all threads have left it. When any
 * of them fails, all are aborted, whatever they do, and discarded together.
 *
 * @param ticket The ticket.
 * @param function The work.
 * @param argument Passed to the function.
 * @param result Set to what the function returned, whatever its sign, if it is
 *     not null and the code is VMSRS_OK.
 * @retval VMSRS_OK The function returned.
 * @retval VMSRS_EFAILED The request failed; see vmsrs_last_failure().
 * @retval VMSRS_EENDED The request has ended. The function was not run.
 * @retval VMSRS_EINVAL A null pointer, or the ticket is all zero. Not run.
 * @retval VMSRS_ENESTED The thread has a request. Not run.
 * @retval VMSRS_ELIMIT 256 threads have joined. Not run.
 * @retval VMSRS_ESYSTEM See errno. Not run.
 * @retval VMSRS_EFORKED This is a child, forked since the ticket was made or in
 *     the function.
 */
VMSRS_MUST_USE
int vmsrs_join(const struct vmsrs_ticket_t *ticket, vmsrs_request_fn function,
	       void *argument, int *result);

/** A piece of the work of a request, for vmsrs_fan_out(). */
typedef struct vmsrs_piece {
	/**
	 * The work, called on a thread of its own with that thread's request.
	 */
	vmsrs_request_fn function;
	/** Passed to the function. */
	void *argument;
	/**
	 * Set to VMSRS_OK if the piece was run, or to the reason why not:
	 * VMSRS_ELIMIT, VMSRS_ESYSTEM.
	 */
	int outcome;
	/**
	 * Set to what the function returned, whatever its sign; 0 if it was not
	 * run.
	 */
	int result;
} vmsrs_piece;

/**
 * Runs pieces of the work of a request in parallel, each on a new thread that
 * joins the request, and waits for them.
 *
 * When a piece fails, the request fails, and this does not return.
 *
 * @param request The request.
 * @param pieces The pieces, which only this call may use until it returns. It
 *     sets outcome and result of each.
 * @param count How many, at most 65536.
 * @retval VMSRS_OK All pieces were run.
 * @retval VMSRS_EINVAL A null pointer, or too many pieces. None was run, and
 *     pieces is unchanged.
 * @retval VMSRS_ENOREQUEST None was run, and pieces is unchanged.
 * @retval VMSRS_ELIMIT Not all were run, since 256 threads have joined; see
 *     outcome.
 * @retval VMSRS_ESYSTEM Not all were run, since no thread could be created; see
 *     outcome.
 */
VMSRS_MUST_USE
int vmsrs_fan_out(const struct vmsrs_request *request,
		  struct vmsrs_piece *pieces, size_t count);

/*
 * Requests in steps
 */

/** What a step returns, besides negative values. */
enum vmsrs_step {
	/** The request is done: what it wrote is committed. */
	VMSRS_STEP_DONE = 0,
	/** The request goes on with another step. */
	VMSRS_STEP_SUSPEND = 1,
};

/**
 * Creates a task: a request in steps, which holds a domain. It begins with its
 * first step.
 *
 * @param domain The domain.
 * @param options The options, or null for the defaults.
 * @param task Set to the task on success; vmsrs_task_free() ends it.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, an unknown flag, or a stack of more than
 *     1 GiB.
 * @retval VMSRS_ESYSTEM See errno.
 */
VMSRS_MUST_USE
int vmsrs_task_new(const struct vmsrs_domain *domain,
		   const struct vmsrs_options *options,
		   struct vmsrs_task **task);

/**
 * Runs a function as the next step of a task.
 *
 * Each step may run on another thread, one at a time. The first one locks the
 * domain. The domains stay locked between the steps and the deadline goes on: a
 * task that misses it while it is suspended fails at once, and the next step
 * returns VMSRS_EFAILED.
 *
 * @param task The task.
 * @param function The step. It returns VMSRS_STEP_SUSPEND, VMSRS_STEP_DONE, or
 *     a negative value to give the request up.
 * @param argument Passed to the function.
 * @param result Set to what the function returned, if it is not null and the
 *     code is VMSRS_OK or VMSRS_EUNSEALED.
 * @retval VMSRS_OK The function returned.
 * @retval VMSRS_EFAILED The request failed, in this step or before it; see
 *     vmsrs_last_failure().
 * @retval VMSRS_EUNSEALED Committed, but not sealed in time.
 * @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed.
 * @retval VMSRS_EENDED The task has ended before. The function was not run.
 * @retval VMSRS_EINVAL A null pointer. Not run.
 * @retval VMSRS_ENESTED The thread has a request. Not run; try again outside of
 *     it.
 * @retval VMSRS_ETIMEOUT The domain did not become free in time. Not run; try
 *     again.
 * @retval VMSRS_ELAYOUT The heap of the domain has another layout. Not run.
 * @retval VMSRS_ELIMIT 4096 tasks of the process are suspended. The request was
 *     given up.
 * @retval VMSRS_ESYSTEM See errno.
 * @retval VMSRS_EFORKED This is a child, forked since the task was made or in
 *     the function.
 */
VMSRS_MUST_USE
int vmsrs_task_step(struct vmsrs_task *task, vmsrs_request_fn function,
		    void *argument, int *result);

/**
 * Frees a task. A request that has not ended is given up: what it wrote is
 * discarded, and its defers are run.
 *
 * In a request, the defers run as a part of that one. In a forked child a task
 * of the parent is freed without effect on the parent.
 *
 * @param task The task; null does nothing.
 */
void vmsrs_task_free(struct vmsrs_task *task);

/*
 * Invariants: checks of the server's own before a commit
 */

/**
 * Checks a domain before it is committed.
 *
 * It runs in the request and should only read. An error in it fails the
 * request, and so does vmsrs_fail(), with a message.
 *
 * @param domain The domain.
 * @param argument What the caller passed.
 * @return 0 if the domain is sound; anything else fails the request
 *     (VMSRS_KIND_INVARIANT).
 */
typedef int (*vmsrs_invariant_fn)(struct vmsrs_domain *domain, void *argument);

/**
 * Registers a check of every domain of an app, once in a process.
 *
 * It is called for each domain that the request has written to, when the
 * request ends and in vmsrs_commit() and vmsrs_leave(), by any thread and by
 * several at a time.
 *
 * @param app The app.
 * @param function The check.
 * @param argument Passed to the function; must live as long as the process.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or the app has a check already.
 * @retval VMSRS_ENESTED Inside a request or a defer.
 */
VMSRS_MUST_USE
int vmsrs_app_invariant(const struct vmsrs_app *app,
			vmsrs_invariant_fn function, void *argument);

/**
 * Registers a check of one domain, once in a process. The check of the app is
 * called as well.
 *
 * @param domain The domain.
 * @param function The check.
 * @param argument Passed to the function; must live as long as the process.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or the domain has a check already.
 * @retval VMSRS_ENESTED Inside a request or a defer.
 */
VMSRS_MUST_USE
int vmsrs_domain_invariant(const struct vmsrs_domain *domain,
			   vmsrs_invariant_fn function, void *argument);

/*
 * Guards: memory outside of domains that requests only read
 */

/**
 * Makes pages outside of domains read-only for requests.
 *
 * A write in a request fails it (VMSRS_KIND_MEMORY); a system call that would
 * write there gives EFAULT. Outside of requests nothing changes. The pages must
 * stay mapped for reading and writing, and no request may write to them while
 * it blocks SIGSEGV.
 *
 * Call it after vmsrs_open() and before other threads start. A thread that
 * exists already cannot touch the pages until its next request ends, nor can
 * threads that it creates; one that is created in a request can only read them
 * until it has had a request of its own. Signal handlers start without access;
 * see vmsrs_open_guard().
 *
 * @param start The first page.
 * @param length Bytes, a multiple of 4096.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL Null, not whole pages, or pages of domains are among
 *     them.
 * @retval VMSRS_ENESTED Called in a request or a deferred function.
 * @retval VMSRS_ENOKEYS No protection key is left.
 * @retval VMSRS_ESYSTEM See errno. If pages are not mapped, those before the
 *     first such one are guarded.
 */
VMSRS_MUST_USE int vmsrs_guard(void *start, size_t length);

/**
 * Makes the variables of the program read-only for requests: the pages of its
 * .data and .bss.
 *
 * For programs whose requests change none of them, linked with libvmsrs.so and
 * -Wl,-z,now. The program's copies of variables of libraries (stderr, environ,
 * std::cout) are among them; -fPIC -mno-direct-extern-access leaves those in
 * their libraries.
 *
 * @retval VMSRS_EVARIABLES The variables cannot be guarded.
 * @return Otherwise as vmsrs_guard().
 */
VMSRS_MUST_USE int vmsrs_guard_variables(void);

/**
 * Lets the calling thread write to guarded memory until it begins or ends a
 * request, or returns from the signal handler that calls this.
 *
 * For signal handlers, which start without access. In a request it opens the
 * memory to the request. Async-signal-safe.
 */
void vmsrs_open_guard(void);

/*
 * Leases: bytes of a domain that are sent outside of requests
 */

/**
 * Finds what is to be leased.
 *
 * @param request The request: valid until the function returns, on this thread
 *     only.
 * @param argument What the caller passed.
 * @param bytes To be set to the first byte, in a block of the request's domain;
 *     null before.
 * @param length To be set to the number of bytes.
 * @return A result of 0 or more, or a negative value to give the request up.
 */
typedef int (*vmsrs_find_fn)(struct vmsrs_request *request, void *argument, const void **bytes, size_t *length);

/** Bytes of a domain that do not change. All zero if there are none. */
typedef struct vmsrs_lease_t {
	/** The first byte, or null. */
	const void *data;
	/** Number of bytes. */
	size_t length;
	/** The library's: numbers that no other lease has, before or after. */
	uint64_t state[3];
} vmsrs_lease_t;

/**
 * Leases bytes of a domain, to be read outside of requests: by writev() or
 * send() to a slow client, for example, which may take any number of turns of
 * an event loop.
 *
 * Runs a function as a request, as vmsrs_run() does, which finds the bytes in
 * the domain; they are leased before that request ends, and only if it
 * succeeds. They are (a part of) one block, and committed: the request may
 * change other ones only.
 *
 * The lease shows them at an address of its own. They stay as they are,
 * whatever becomes of the domain: requests change what the lease was taken of,
 * free it, or delete the domain, and nobody waits for the lease. It lasts until
 * vmsrs_lease_end() or the end of the process. A child of fork() does not have
 * it. What the host has lost of it cannot be read: a system call gives EFAULT,
 * a direct access raises SIGBUS.
 *
 * It costs two calls of the kernel and a page fault: small values are copied
 * for less. Without protection it is a copy.
 *
 * @param domain The domain.
 * @param find Finds the bytes.
 * @param argument Passed to find.
 * @param lease Set to the lease; its data is null if find has left its bytes
 *     null, or has given up, or if this returns an error.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or the bytes are not the domain's.
 * @retval VMSRS_EUNCOMMITTED The request has changed the bytes.
 * @retval VMSRS_ELIMIT All leases together have more pages than the pool has
 *     frames, or those of pages that are not sealed yet more than an eighth of
 *     it, or the process has 262,144 leases.
 * @retval VMSRS_EDAMAGED Content of the domain is lost.
 * @return Otherwise as vmsrs_run(). After each of these but VMSRS_OK the
 *     request has changed nothing.
 */
VMSRS_MUST_USE
int vmsrs_lease(const struct vmsrs_domain *domain, vmsrs_find_fn find,
		void *argument, struct vmsrs_lease_t *lease);

/**
 * Ends a lease. Can be called by any thread, also in requests; errno stays as
 * it is.
 *
 * A lease is ended once, by any copy of the structure; other copies get an
 * error from then on. Keep the structure outside of domains: a request that
 * ends a lease and fails afterwards has ended it for good, but a structure in a
 * domain is restored by the failure, and points to bytes that are unmapped.
 * Ending that one again does no harm.
 *
 * @param lease The lease; it has no bytes afterwards, whatever this returns.
 * @retval VMSRS_OK It is ended; or it had no bytes, or is null: nothing was to
 *     be done.
 * @retval VMSRS_EINVAL It is not a lease of this process's, or not any more: it
 *     was ended by another copy, or belongs to the parent of a fork, or one of
 *     its fields is wrong. Nothing is unmapped.
 */
int vmsrs_lease_end(struct vmsrs_lease_t *lease);

/*
 * Mutexes for what lies outside of domains
 */

/**
 * Puts right what a mutex guards, after its request has failed.
 *
 * It runs like a deferred function, with the mutex still locked. What the mutex
 * guards is as the request has left it, which may be a list with a cycle: one
 * that has not ended after 5 seconds is aborted. An error in it ends it alone.
 * In both cases the mutex is released, with those that the function has locked
 * itself.
 *
 * @param argument What the mutex was initialised with.
 */
typedef void (*vmsrs_repair_fn)(void *argument);

/**
 * A mutex for what lies outside of domains.
 *
 * Unlike a pthread_mutex_t, which a failed request leaves locked, this one is
 * released when the request that has locked it fails or is given up. Its fields
 * are the library's. All zero is a mutex without a function.
 */
typedef struct vmsrs_mutex_t {
	/** The function, or null. */
	vmsrs_repair_fn repair;
	/** Its argument. */
	void *argument;
	/** State. */
	uint32_t state[2];
} vmsrs_mutex_t;

/**
 * Initialises a mutex.
 *
 * @param mutex The mutex. It must stay where it is, and live as long as
 *     requests may use it.
 * @param repair Called when a request fails that has locked it; or null.
 * @param argument Passed to repair.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL mutex is null.
 */
int vmsrs_mutex_init(struct vmsrs_mutex_t *mutex, vmsrs_repair_fn repair,
		     void *argument);

/**
 * Locks a mutex, in a request or outside.
 *
 * A thread that waits in a request is aborted as elsewhere when the request
 * fails.
 *
 * @param mutex The mutex.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL mutex is null.
 * @retval VMSRS_EHELD The thread has it.
 * @retval VMSRS_ELIMIT The thread has locked 16 mutexes in requests.
 */
VMSRS_MUST_USE int vmsrs_mutex_lock(struct vmsrs_mutex_t *mutex);

/**
 * Locks a mutex if it is free.
 *
 * @param mutex The mutex.
 * @retval VMSRS_ETIMEOUT It is not free.
 * @return Otherwise as vmsrs_mutex_lock().
 */
VMSRS_MUST_USE int vmsrs_mutex_trylock(struct vmsrs_mutex_t *mutex);

/**
 * Unlocks a mutex.
 *
 * @param mutex The mutex.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL mutex is null.
 * @retval VMSRS_ENOTHELD The calling thread does not have it.
 */
int vmsrs_mutex_unlock(struct vmsrs_mutex_t *mutex);

/*
 * Diagnostics
 */

/** State of the driver, for statistics. */
typedef struct vmsrs_info {
	/** Frames of 4 KiB in the vault, which holds sealed pages. */
	uint32_t vault_frames;
	/**
	 * Frames in the pool, which holds drafts and commits that are not
	 * sealed yet.
	 */
	uint32_t pool_frames;
	/** Free frames in the driver's pool. */
	uint32_t pool_free;
	/** Drafts of all requests. */
	uint32_t drafts;
	/** Pages committed and not sealed yet. */
	uint32_t unsealed;
	/** 1 if the host is broken; nothing can be written then. */
	uint32_t broken;
	/**
	 * Frames of the pool that resident pages have, between requests too.
	 */
	uint32_t resident;
	/**
	 * Reports that the host has not taken yet. They hold the frames of the
	 * drafts that they name.
	 */
	uint32_t reports;
	/** Commits of at least one page. */
	uint64_t commits;
	/** Pages sealed. */
	uint64_t sealed_pages;
	/** Drafts discarded. */
	uint64_t discarded;
	/** Incidents reported by the driver. */
	uint64_t incidents;
	/** Seal messages sent. */
	uint64_t seal_messages;
} vmsrs_info;

/**
 * Reads the state of the driver. Without protection all fields are 0.
 *
 * @param app The app.
 * @param info Filled in on success.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer.
 * @retval VMSRS_ESYSTEM See errno.
 */
int vmsrs_app_info(const struct vmsrs_app *app, struct vmsrs_info *info);

/**
 * How many requests of a domain may fail within a time. If all fields are 0,
 * there is no limit.
 */
typedef struct vmsrs_budget {
	/** Failures that are allowed; 0 for any number. */
	uint32_t failures;
	/** Within so many milliseconds. */
	uint32_t within_ms;
	/** Milliseconds for which a domain with more failures is refused. */
	uint32_t pause_ms;
	/** Must be 0. */
	uint32_t reserved;
} vmsrs_budget;

/**
 * Sets the budget of failures of each domain of an app.
 *
 * A domain with more failures is refused for a while: calls that begin a
 * request with it or enter it return VMSRS_EQUARANTINE. An incident of its own
 * says so. What counts are requests of this process that were begun with the
 * domain.
 *
 * @param app The app.
 * @param budget The budget.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or the reserved field is not 0.
 * @retval VMSRS_ENESTED Inside a request or a defer.
 */
VMSRS_MUST_USE
int vmsrs_app_budget(const struct vmsrs_app *app,
		     const struct vmsrs_budget *budget);

/**
 * Sets the budget of failures of one domain, instead of the app's.
 *
 * @param domain The domain.
 * @param budget The budget; one without a number is the app's again.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL A null pointer, or the reserved field is not 0.
 * @retval VMSRS_ENESTED Inside a request or a defer.
 */
VMSRS_MUST_USE
int vmsrs_domain_budget(const struct vmsrs_domain *domain,
			const struct vmsrs_budget *budget);

/**
 * What has happened in the process since its start that a restart would make
 * good.
 */
typedef struct vmsrs_health_t {
	/** Requests that have failed, in all apps. */
	uint64_t failures;
	/**
	 * Of these: aborted in the C library, in an allocator or by an
	 * interrupt, or by abort(). The heap was tried then, and worked; what
	 * was allocated there stays.
	 */
	uint64_t heap_suspect;
	/**
	 * Deferred functions that have failed: what they were to undo may be
	 * left.
	 */
	uint64_t defers_failed;
	/** How often a domain was refused for its failures. */
	uint64_t quarantines;
	/**
	 * Descriptors of the library that a stray close() had taken, and that
	 * were made again.
	 */
	uint64_t descriptors_repaired;
	/**
	 * Descriptors that failed requests have left open: an estimate, from
	 * counts of all that the process had open before and after them.
	 */
	uint64_t left_descriptors;
	/**
	 * Bytes of memory outside of domains that failed requests have left
	 * allocated: an estimate, as above.
	 */
	uint64_t left_bytes;
	/**
	 * Robust mutexes that failed requests have left locked: the only ones
	 * that are known to belong to a thread.
	 */
	uint64_t locks_left;
} vmsrs_health_t;

/**
 * Tells how the process is: what a server looks at to plan its restart. Can be
 * called anywhere.
 *
 * @param health Filled in on success.
 * @retval VMSRS_OK
 * @retval VMSRS_EINVAL health is null.
 */
int vmsrs_health(struct vmsrs_health_t *health);

#ifdef __cplusplus
}
#endif

#endif /* VMSRS_H */
