/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Guest library of VMSRS: requests whose memory errors cost only themselves.
 *
 * Generated from the crate in guest-lib/ by cbindgen: do not edit, run `make headers`.
 * The README beside it explains the ideas; examples/notes.c is a small server.
 */

#ifndef VMSRS_H
#define VMSRS_H

#include <stddef.h>
#include <stdint.h>
#if defined(__GNUC__) || defined(__clang__)
#define VMSRS_MUST_USE __attribute__((warn_unused_result))
#define VMSRS_NORETURN __attribute__((noreturn))
/* Returns new memory; argument 2 is its size. */
#define VMSRS_ALLOC __attribute__((malloc, alloc_size(2), warn_unused_result))
/* The same for memory that may move. */
#define VMSRS_REALLOC __attribute__((alloc_size(3), warn_unused_result))
#else
#define VMSRS_MUST_USE
#define VMSRS_NORETURN
#define VMSRS_ALLOC
#define VMSRS_REALLOC
#endif

// Bytes that one request can take from its arena.
#define VMSRS_ARENA_SIZE ((16 * 1024) * 1024)

// Done.
#define VMSRS_OK 0

// The request failed: its error was suppressed and everything it wrote was discarded.
// `vmsrs_last_failure` has the details.
#define VMSRS_EFAILED -1

// An argument is out of its range.
#define VMSRS_EINVAL -2

// The device is there but cannot be used (rights, version, or the host is broken).
#define VMSRS_EDEVICE -3

// The domain's heap was written by a library with another layout.
#define VMSRS_ELAYOUT -4

// The call belongs into a request, and the calling thread has none.
#define VMSRS_ENOREQUEST -5

// The request does not hold the domain.
#define VMSRS_ENOTHELD -6

// The calling thread has a request already, and the call belongs outside of requests.
#define VMSRS_ENESTED -7

// The request holds the domain already.
#define VMSRS_EHELD -8

// The request holds 32 domains or 256 defers, or has 256 threads already.
#define VMSRS_ELIMIT -9

// The domain belongs to another app than the request.
#define VMSRS_EAPP -10

// The domain's lock did not become free in time.
#define VMSRS_ETIMEOUT -11

// No memory: the window or the domain is full.
#define VMSRS_ENOMEM -12

// The domain given to `vmsrs_run` is held to the end of the request.
#define VMSRS_EMAIN -13

// Committed, but the host did not seal it in time; it will when it answers.
#define VMSRS_EUNSEALED -14

// The process was forked inside the request; the child has no part in it.
#define VMSRS_EFORKED -15

// The operating system or the driver refused; `errno` says why.
#define VMSRS_ESYSTEM -16

// The domain's holder waits for a domain that this request holds. The request still holds what it
// held: leave some of it and try again, or give up.
#define VMSRS_EDEADLOCK -17

// The host lost content of the domain to broken memory, and the domain has no mirror.
#define VMSRS_EDAMAGED -18

// The request that a ticket or a task is for is over.
#define VMSRS_EENDED -19

// Memory cannot be guarded: there are no protection keys, or requests have them all.
#define VMSRS_ENOKEYS -20

// The program's variables cannot be guarded: it binds its functions late, has the library in it, or has an unusual
// layout.
#define VMSRS_EVARIABLES -21

// SIGSEGV or SIGBUS with no better explanation (for example a null write).
#define VMSRS_KIND_MEMORY 1

// SIGFPE (for example an integer division by zero).
#define VMSRS_KIND_ARITHMETIC 2

// SIGILL or SIGTRAP.
#define VMSRS_KIND_INSTRUCTION 3

// SIGABRT: failed assertion, glibc's heap checks, stack protector, C++ terminate, Rust abort.
#define VMSRS_KIND_ABORT 4

// The request ran over the guard below its stack.
#define VMSRS_KIND_STACK_OVERFLOW 5

// A write to a page of a domain that the request does not hold.
#define VMSRS_KIND_FOREIGN_WRITE 6

// A write into a sealed frame, stopped by the host.
#define VMSRS_KIND_SEALED_WRITE 7

// A block that was freed already was freed again.
#define VMSRS_KIND_DOUBLE_FREE 8

// A pointer that is no block of the domain was freed.
#define VMSRS_KIND_FOREIGN_FREE 9

// Bytes behind a block were overwritten.
#define VMSRS_KIND_RED_ZONE 10

// A freed block was written to.
#define VMSRS_KIND_USE_AFTER_FREE 11

// The heap's own metadata is damaged.
#define VMSRS_KIND_HEAP_CORRUPT 12

// A Rust panic left the request.
#define VMSRS_KIND_PANIC 13

// The request missed its deadline.
#define VMSRS_KIND_DEADLINE 14

// The thread of a request ended inside it.
#define VMSRS_KIND_THREAD_DEATH 15

// The process ended with the request in flight.
#define VMSRS_KIND_PROCESS_DEATH 16

// The pool of frames ran dry while the request wrote.
#define VMSRS_KIND_NO_FRAMES 17

// The server called the request failed (`vmsrs_fail`).
#define VMSRS_KIND_INVARIANT 18

// A read or write of a page that another request was writing, stopped by a protection key.
#define VMSRS_KIND_FOREIGN_DRAFT 19

// The content of a sealed frame no longer had its checksum (the host's own incident).
#define VMSRS_KIND_CHECKSUM 20

// Memory of the host is broken (the host's own incident).
#define VMSRS_KIND_POISON 21

// The request touched a page whose content the host lost.
#define VMSRS_KIND_DAMAGED 22

// No device: nothing is restored after an error, but errors are suppressed all the same.
#define VMSRS_PROTECTION_NONE 0

// The driver and the host keep versions of every page.
#define VMSRS_PROTECTION_FULL 1

// Flag of `vmsrs_domain_open_with`: the host keeps a second copy of each sealed page, and repairs
// from it a page whose memory went wrong. The copies take as much room of the window as the pages.
#define VMSRS_MIRROR 1

// Option: return when the host has sealed the commit.
#define VMSRS_SEAL 1

// Option: the audit before the commit looks at all of every domain that is committed, not only at the
// pages that the request has written.
#define VMSRS_AUDIT_WHOLE 2

// What a step returns when the request goes on with another step.
#define VMSRS_STEP_SUSPEND 1

// What a step returns when the request is done: everything it wrote is committed.
#define VMSRS_STEP_DONE 0

// An app, open in this process for as long as it lives.
typedef struct vmsrs_app vmsrs_app;

// A domain, open in this process for as long as it lives.
//
// All processes that open the app find the domain at the same addresses, so pointers inside it
// stay good.
typedef struct vmsrs_domain vmsrs_domain;

// A running request, as one of its threads has it: on that thread, until its function returns.
typedef struct vmsrs_request vmsrs_request;

// A request in steps, each on any thread.
//
// Its domains stay locked between the steps, and its deadline runs on: a task that misses it while it
// is suspended fails, its locks are free at once, and the next step returns the failure. Dropping a
// task gives it up. Dropped inside another request, its defers run as a part of that one.
typedef struct vmsrs_task vmsrs_task;

// State of the driver, for statistics.
typedef struct vmsrs_info {
  // Frames of 4 KiB in the window.
  uint32_t window_frames;
  // Frames that the driver may hold at most.
  uint32_t pool_frames;
  // Frames free in the driver's pool.
  uint32_t pool_free;
  // Drafts of all requests.
  uint32_t drafts;
  // Pages committed and not yet sealed.
  uint32_t unsealed;
  // 1 if the host is broken; nothing can be written then.
  uint32_t broken;
  // Commits with at least one page.
  uint64_t commits;
  // Pages sealed.
  uint64_t sealed_pages;
  // Drafts discarded.
  uint64_t discarded;
  // Incidents reported by the driver.
  uint64_t incidents;
  // Seal messages sent.
  uint64_t seal_messages;
} vmsrs_info;

// Work of one request. What it returns goes to `*result` of `vmsrs_run`; a negative value gives the
// request up: everything it wrote is discarded.
typedef int (*vmsrs_request_fn)(struct vmsrs_request *request, void *argument);

// How a request is run. All zero is the default.
typedef struct vmsrs_options {
  // `VMSRS_SEAL`, `VMSRS_AUDIT_WHOLE`, both, or 0.
  uint32_t flags;
  // Milliseconds that the request may take, 0 for no limit.
  uint32_t deadline_ms;
  // Milliseconds to wait for a domain's lock, 0 for the default (the deadline, or 10 s).
  uint32_t lock_timeout_ms;
  // Set to 0.
  uint32_t reserved;
} vmsrs_options;

// The last failed request of a thread.
typedef struct vmsrs_failure {
  // One of the `VMSRS_KIND_` constants.
  uint32_t kind;
  // The signal, or 0.
  int32_t signal;
  // `si_code` of the signal, or 0.
  int32_t code;
  // Pages that were discarded.
  uint32_t drafts;
  // Number of the incident, for `vmsrs incidents` on the host; 0 if there is none.
  uint64_t incident;
  // Address of the access or of the block, or 0.
  uint64_t address;
  // Instruction pointer at the error, or 0.
  uint64_t instruction;
  // Nanoseconds from the detection to the end of the discard.
  uint64_t recovery_ns;
  // Defers that failed themselves and were cut short.
  uint32_t defers_failed;
  // 0.
  uint32_t reserved;
  // What a panic or `vmsrs_fail` said, ended by a zero byte; may be empty.
  char message[128];
} vmsrs_failure;

// Work that undoes something outside of domains.
typedef void (*vmsrs_defer_fn)(void *argument);

// Lets other threads work for a request. Good until its request ends; can be copied and sent to any
// number of threads. The fields are the library's.
typedef struct vmsrs_ticket_t {
  // The library's.
  const void *state;
  // The library's.
  const void *domain;
  // The library's.
  uint64_t tag;
  // The library's.
  uint32_t forks;
  // 0.
  uint32_t reserved;
} vmsrs_ticket_t;

// One piece of a request's work, for `vmsrs_fan_out`.
typedef struct vmsrs_piece {
  // Called on a thread of its own, with that thread's request.
  vmsrs_request_fn function;
  // What it is called with.
  void *argument;
  // Set to `VMSRS_OK` if it was run; otherwise to the reason why not: `VMSRS_ELIMIT` (256 threads),
  // `VMSRS_ESYSTEM` (no thread could be made).
  int outcome;
  // Set to what the function returned, whatever its sign; 0 if it was not run.
  int result;
} vmsrs_piece;

// Checks a domain: returns 0 if the domain is sound. Anything else fails the request, as does any error
// in it. `vmsrs_fail` in it fails the request with a message.
typedef int (*vmsrs_invariant_fn)(struct vmsrs_domain *domain, void *argument);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// One sentence about a return code. Never null.
const char *vmsrs_strerror(int code);

// Short name of a kind of failure ("null write" is "memory"), as the host's tools print it. Never
// null.
const char *vmsrs_kind_name(uint32_t kind);

// Opens the app called `name` (1 to 64 bytes), makes it if it is new, and installs the library's
// signal handlers. Code that runs in requests must bear being cut short at any instruction without
// its cleanup being run (see "Abandoned frames" in the README).
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_EDEVICE`, or `VMSRS_ESYSTEM` (also when the app's
// addresses are occupied).
//
// # Safety
//
// `name` is a C string, `app` points to room for a pointer.
VMSRS_MUST_USE int vmsrs_open(const char *name, struct vmsrs_app **app);

// `VMSRS_PROTECTION_FULL`, `VMSRS_PROTECTION_NONE`, or `VMSRS_EINVAL` for a null pointer.
//
// # Safety
//
// `app` comes from `vmsrs_open` or is null.
int vmsrs_protection(const struct vmsrs_app *app);

// Reads the driver's state. Without protection all is 0.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ESYSTEM`.
//
// # Safety
//
// `app` comes from `vmsrs_open`; `info` points to room for the answer.
int vmsrs_app_info(const struct vmsrs_app *app, struct vmsrs_info *info);

// Waits until everything committed so far is sealed by the host.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_EUNSEALED`, `VMSRS_ESYSTEM`.
//
// # Safety
//
// `app` comes from `vmsrs_open`.
VMSRS_MUST_USE int vmsrs_flush(const struct vmsrs_app *app);

// Opens the domain of `app` with the key of `length` bytes (1 to 64, any values), makes it if it is
// new.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ELAYOUT`, `VMSRS_ENOMEM` (the window is full),
// `VMSRS_EDAMAGED`,
// `VMSRS_ESYSTEM`.
//
// # Safety
//
// `app` comes from `vmsrs_open`, `key` points to `length` bytes, `domain` to room for a pointer.
VMSRS_MUST_USE
int vmsrs_domain_open(const struct vmsrs_app *app,
                      const void *key,
                      size_t length,
                      struct vmsrs_domain **domain);

// Like `vmsrs_domain_open`, with flags: `VMSRS_MIRROR` or 0. A domain that is open already in this
// process stays as it is, and one that has a mirror keeps it.
//
// Returns what `vmsrs_domain_open` returns; `VMSRS_ENOMEM` also when the window has no room for the
// mirror.
//
// # Safety
//
// As `vmsrs_domain_open`.
VMSRS_MUST_USE
int vmsrs_domain_open_with(const struct vmsrs_app *app,
                           const void *key,
                           size_t length,
                           uint32_t flags,
                           struct vmsrs_domain **domain);

// The domain's root pointer, or null if it was never set. Its request should hold the domain, or
// what the pointer leads to may change meanwhile.
//
// # Safety
//
// `domain` as `vmsrs_alloc`.
void *vmsrs_root(const struct vmsrs_domain *domain);

// Sets the domain's root pointer.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`.
//
// # Safety
//
// `domain` as `vmsrs_alloc`.
VMSRS_MUST_USE int vmsrs_set_root(const struct vmsrs_domain *domain, void *root);

// Runs `function` as a request that holds `domain`.
//
// The function runs on a stack of its own. When it ends with a value of 0 or more, everything it
// wrote to domains is committed; with a negative value it is discarded and the defers run. When an
// error strikes, it is discarded, the locks are free again, the defers have run, and this returns
// `VMSRS_EFAILED`.
//
// `VMSRS_OK`: `*result` is what the function returned (committed if not negative; `result` may be
// null). `VMSRS_EFAILED`: see `vmsrs_last_failure`. `VMSRS_EUNSEALED`: committed, `*result` is
// valid. `VMSRS_EINVAL`, `VMSRS_ENESTED`, `VMSRS_ETIMEOUT`, `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`: the
// function was not run.
// `VMSRS_EFORKED`: this is the child of a fork inside the function.
//
// # Safety
//
// `domain` comes from `vmsrs_domain_open`; the function bears being cut short.
VMSRS_MUST_USE
int vmsrs_run(const struct vmsrs_domain *domain,
              vmsrs_request_fn function,
              void *argument,
              int *result);

// Like `vmsrs_run`, with options (null for the defaults).
//
// # Safety
//
// As `vmsrs_run`; `options` points to options or is null.
VMSRS_MUST_USE
int vmsrs_run_with(const struct vmsrs_domain *domain,
                   const struct vmsrs_options *options,
                   vmsrs_request_fn function,
                   void *argument,
                   int *result);

// The last failure that `vmsrs_run`, `vmsrs_join` or `vmsrs_task_step` reported to the calling thread.
//
// Returns `VMSRS_OK`; `VMSRS_EINVAL` for a null pointer; `VMSRS_ENOREQUEST` if no request of this
// thread has failed.
//
// # Safety
//
// `failure` points to room for it.
int vmsrs_last_failure(struct vmsrs_failure *failure);

// Locks the shared domain for the request and opens an atomic section on it.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EHELD`, `VMSRS_ELIMIT`,
// `VMSRS_EAPP`, `VMSRS_ETIMEOUT`, `VMSRS_EDEADLOCK` (the holder waits for this request, directly or
// through others), `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`. The order in which domains are entered is the
// server's affair; with the same order in every request, none ever waits in a circle.
//
// # Safety
//
// `request` is the one that the calling function got, `domain` comes from `vmsrs_domain_open`.
VMSRS_MUST_USE
int vmsrs_enter(const struct vmsrs_request *request,
                const struct vmsrs_domain *domain);

// Commits what the request wrote to the entered domain, and unlocks it. A domain that is never left
// is held to the end of the request and commits together with it.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`, `VMSRS_EMAIN`,
// `VMSRS_ESYSTEM`. Does not return when the audit finds damage: the request fails.
//
// # Safety
//
// As `vmsrs_enter`.
VMSRS_MUST_USE
int vmsrs_leave(const struct vmsrs_request *request,
                const struct vmsrs_domain *domain);

// Commits everything that the request wrote so far; it goes on and keeps its domains. `flags` is
// `VMSRS_SEAL` or 0. The defers registered so far are forgotten.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EUNSEALED`, `VMSRS_ESYSTEM`. Does
// not return when the audit finds damage: the request fails.
//
// # Safety
//
// As `vmsrs_enter`.
VMSRS_MUST_USE int vmsrs_commit(const struct vmsrs_request *request, uint32_t flags);

// Calls the request failed (`VMSRS_KIND_INVARIANT`) with a message of up to 127 bytes (may be
// null). Does not return inside a request; `vmsrs_run` returns `VMSRS_EFAILED`. Outside of a
// request it aborts the process.
//
// # Safety
//
// `message` is a C string or null.
void vmsrs_fail(const char *message) VMSRS_NORETURN;

// Registers work that undoes something outside of domains (a file, a descriptor) if the request
// fails or is given up. The newest runs first. It runs on the thread that ends it, outside of the request: domains cannot be
// written, errors in it are suppressed.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ELIMIT`.
//
// # Safety
//
// `request` is the one that the calling function got; `function` may be called with `argument`.
VMSRS_MUST_USE
int vmsrs_defer(const struct vmsrs_request *request,
                vmsrs_defer_fn function,
                void *argument);

// Memory of the request's arena: not zeroed, 16-byte aligned, gone when the request ends, not
// versioned. Null when the request has used up its 16 MiB, or `request` is null or not the running
// request of the calling thread.
//
// # Safety
//
// `request` is the one that the calling function got.
//
VMSRS_ALLOC void *vmsrs_arena_alloc(const struct vmsrs_request *request, size_t size);

// Locks several shared domains in an order that is the same in all requests, and holds them to the end
// of the request or to `vmsrs_leave`. Domains that the request holds already are no error.
//
// Returns as `vmsrs_enter`; if it is not `VMSRS_OK`, what this call has locked before is left again.
//
// # Safety
//
// `request` is the one that the calling function got, `domains` points to `count` domains.
VMSRS_MUST_USE
int vmsrs_enter_all(const struct vmsrs_request *request,
                    const struct vmsrs_domain *const *domains,
                    size_t count);

// A block of at least `size` bytes in a domain that the calling thread's request holds: not zeroed,
// 16-byte aligned, visible to others when the request commits.
//
// Null with `errno` ENOMEM (window or domain full), EPERM (no request, or it does not hold the
// domain), EINVAL.
//
// # Safety
//
// `domain` comes from `vmsrs_domain_open` or is null.
//
VMSRS_ALLOC void *vmsrs_alloc(const struct vmsrs_domain *domain, size_t size);

// Like `vmsrs_alloc`, all zero.
//
// # Safety
//
// As `vmsrs_alloc`.
//
VMSRS_ALLOC void *vmsrs_alloc_zeroed(const struct vmsrs_domain *domain, size_t size);

// Like `vmsrs_alloc`, aligned to `alignment`: a power of two up to 4096.
//
// # Safety
//
// As `vmsrs_alloc`.
//
VMSRS_ALLOC
void *vmsrs_alloc_aligned(const struct vmsrs_domain *domain,
                          size_t size,
                          size_t alignment);

// Changes the size of a block as `realloc` does; a null `block` allocates. Alignment is 16 bytes.
// Null with `errno` as `vmsrs_alloc`: the block is unchanged then. A pointer that is no live block
// fails the request, as `vmsrs_free` does.
//
// # Safety
//
// `domain` as `vmsrs_alloc`.
//
VMSRS_REALLOC void *vmsrs_realloc(const struct vmsrs_domain *domain, void *block, size_t size);

// Gives a block back; null is allowed.
//
// In a request that holds the domain a pointer that is no live block fails the request
// (`VMSRS_KIND_DOUBLE_FREE`, `VMSRS_KIND_FOREIGN_FREE`) and this does not return. Otherwise it
// returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, or `VMSRS_ENOTHELD`, and changes nothing.
//
// # Safety
//
// `domain` as `vmsrs_alloc`; nobody uses the block afterwards.
int vmsrs_free(const struct vmsrs_domain *domain, void *block);

// Gives a ticket of the running request, by which other threads join it with `vmsrs_join`.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`.
//
// # Safety
//
// `request` is the one that the calling function got; `ticket` points to room for it.
VMSRS_MUST_USE int vmsrs_ticket(const struct vmsrs_request *request, struct vmsrs_ticket_t *ticket);

// Works for the ticket's request on the calling thread: runs `function` on the thread's request stack.
// What it returns goes to `*result` (which may be null), whatever its sign. The request ends only after
// all threads have left it. When any of them fails, all come to their landings, whatever they do.
//
// `VMSRS_OK`: `*result` is valid. `VMSRS_EFAILED`: the request has failed, see `vmsrs_last_failure`.
// `VMSRS_EENDED`, `VMSRS_EINVAL`, `VMSRS_ENESTED`, `VMSRS_ELIMIT` (256 threads), `VMSRS_ESYSTEM`: the
// function was not run. `VMSRS_EFORKED`: this is the child of a fork.
//
// # Safety
//
// `ticket` points to what `vmsrs_ticket` gave, or is null; the function bears being cut short.
VMSRS_MUST_USE
int vmsrs_join(const struct vmsrs_ticket_t *ticket,
               vmsrs_request_fn function,
               void *argument,
               int *result);

// Does `count` pieces of the request's work at once: each on a new thread that joins the request.
// Returns when all are done. When one of them fails, the whole request does, and this does not return.
//
// `VMSRS_OK`: all were run. `VMSRS_ELIMIT`, `VMSRS_ESYSTEM`: not all were; the `outcome` of each says
// which. `VMSRS_EINVAL` (also more than 65536 pieces), `VMSRS_ENOREQUEST`: none was, and `pieces` is
// unchanged.
//
// # Safety
//
// `request` is the one that the calling function got; `pieces` points to `count` pieces, which only this
// call uses until it returns; another thread may call each function with its argument, and it bears being
// cut short.
VMSRS_MUST_USE
int vmsrs_fan_out(const struct vmsrs_request *request,
                  struct vmsrs_piece *pieces,
                  size_t count);

// Makes a request that will hold `domain` and is done in steps, each on any thread. It begins with its
// first step. `options` may be null.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ESYSTEM`.
//
// # Safety
//
// `domain` comes from `vmsrs_domain_open`; `options` points to options or is null; `task` points to
// room for a pointer.
VMSRS_MUST_USE
int vmsrs_task_new(const struct vmsrs_domain *domain,
                   const struct vmsrs_options *options,
                   struct vmsrs_task **task);

// Runs `function` as the next step of the request; one thread at a time. It returns
// `VMSRS_STEP_SUSPEND` (the request goes on later, and keeps what it holds and wrote), `VMSRS_STEP_DONE`
// (what it wrote is committed), or a negative value (it is given up). That goes to `*result`, which
// may be null. The first step takes the domain's lock.
//
// `VMSRS_OK`, `VMSRS_EUNSEALED`: `*result` is valid. `VMSRS_EFAILED`: the request has failed, in this
// step or by its deadline before it; see `vmsrs_last_failure`. `VMSRS_EENDED`: it is over.
// `VMSRS_ENESTED`, `VMSRS_ETIMEOUT`: the function was not run, the step can be tried again.
// `VMSRS_EINVAL`, `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`, `VMSRS_EFORKED`: as `vmsrs_run`.
//
// # Safety
//
// `task` comes from `vmsrs_task_new`, and no other thread uses it meanwhile; the function bears being
// cut short.
VMSRS_MUST_USE
int vmsrs_task_step(struct vmsrs_task *task,
                    vmsrs_request_fn function,
                    void *argument,
                    int *result);

// Ends a task; one that is not over is given up. Null is allowed.
//
// # Safety
//
// `task` comes from `vmsrs_task_new`, and nobody uses it afterwards.
void vmsrs_task_free(struct vmsrs_task *task);

// Registers a check of every domain of the app, once in a process. It is called before anything of a
// domain is committed, in the request, for each domain that is to be committed with something written
// by the request: at the end, by `vmsrs_commit`, and by `vmsrs_leave`. If it returns anything but 0, or
// dies of an error, the request fails (`VMSRS_KIND_INVARIANT`). It should only read.
//
// Returns `VMSRS_OK`, or `VMSRS_EINVAL`, also if the app has a check already.
//
// # Safety
//
// `app` comes from `vmsrs_open`; any thread may call `function` with `argument` at any time.
VMSRS_MUST_USE
int vmsrs_app_invariant(const struct vmsrs_app *app,
                        vmsrs_invariant_fn function,
                        void *argument);

// Like `vmsrs_app_invariant`, for one domain. The app's check is called as well.
//
// # Safety
//
// `domain` comes from `vmsrs_domain_open`; the rest as `vmsrs_app_invariant`.
VMSRS_MUST_USE
int vmsrs_domain_invariant(const struct vmsrs_domain *domain,
                           vmsrs_invariant_fn function,
                           void *argument);

// Lets requests only read the pages from `start` on, `length` bytes of them (both multiples of 4096). A
// write in a request fails it. Outside of requests nothing changes, and deferred functions run outside of their
// request (those of a task that is freed in another request run in that one).
//
// Call it after `vmsrs_open` and before other threads start. A thread that was there before cannot
// touch the pages until its next request ends, nor can those that it makes; one made inside a request may only read
// them until it has had one itself. Handlers of signals begin without access: one of the server that touches the
// pages calls `vmsrs_open_guard` first. No request may write to the pages while it blocks SIGSEGV.
//
// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENESTED` inside of a request or a deferred function, `VMSRS_ENOKEYS`,
// `VMSRS_ESYSTEM`.
//
// # Safety
//
// The pages are the caller's, and stay mapped for reading and writing.
VMSRS_MUST_USE
int vmsrs_guard(void *start,
                size_t length);

// As `vmsrs_guard`, for the variables of the program: the pages of its `.data` and `.bss`, those with its
// copies of variables of libraries among them (`stderr`, `environ`, `std::cout`: compile with `-fPIC
// -mno-direct-extern-access` if requests must change such a one). For programs whose requests change none of
// them, linked with `libvmsrs.so` and `-Wl,-z,now`.
//
// Returns as `vmsrs_guard`, and `VMSRS_EVARIABLES`.
//
// # Safety
//
// As `vmsrs_guard`.
VMSRS_MUST_USE
int vmsrs_guard_variables(void);

// Lets the calling thread write to guarded memory until it begins or ends a request, or returns from the handler
// of a signal: for handlers, which begin without access. A request that calls it may write, too. Async-signal-safe.
void vmsrs_open_guard(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VMSRS_H */
