// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * inject: makes chosen requests of a server go wrong. The server knows nothing of it.
 *
 *   LD_PRELOAD=libinject.so ledger 7878
 *
 * The library stands between the server and what the server calls: libvmsrs.so, the memory and
 * string functions of the C library, and the system calls of libvmsrs.so. Whoever talks to the
 * server decides which request is hit, by a line of its own before the request's line:
 *
 *   \1<point> <count> <error> <parameter> <deadline> <seal>\n
 *
 * It is taken out of what recv(2) gives, so the server never sees it. It arms the calling thread:
 * in its next request, the <count>th passage of <point> (see enum point) makes <error> (see
 * enum error). <deadline> (milliseconds, 0 for none) and <seal> (0 or 1) become options of
 * vmsrs_run. The error "none" only sets the options.
 *
 * Before the answer to a request that was armed with an error, send(2) puts a line of its own:
 *
 *   \1<fired> <passages> <stopped>\n
 *
 * <fired>: whether the error was made (at "member": whether the other thread came to it before the
 * request was over); <passages> of the point that were counted; <stopped>: 1 if a write was refused
 * with an error code instead of an exception.
 *
 * Everything is a function of the lines received, but for the point "moment", which is a time, and
 * the error "foreign-draft", which needs another request.
 *
 * real.c     what stands behind the functions here
 * line.c     the lines to and from whoever talks to the server
 * requests.c begin and end of requests
 * calls.c    calls of libvmsrs.so, and its system calls
 * memory.c   memory and string functions
 * threads.c  other threads that work for a request
 * moment.c   an error at a moment in time
 * errors.c   the errors
 */
#ifndef INJECT_H
#define INJECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "vmsrs.h"
#include "vmsrs_protocol.h"

/* What the server or libvmsrs.so finds here in place of another library's. All else is hidden. */
#define EXPORT __attribute__((visibility("default")))

/* Where an error strikes. */
enum point {
	AT_START,     /* the request's function begins */
	AT_END,	      /* the request's function has ended well */
	AT_ROOT,      /* vmsrs_root */
	AT_ALLOC,     /* vmsrs_alloc, vmsrs_alloc_zeroed */
	AT_FREE,      /* vmsrs_free */
	AT_ENTER,     /* vmsrs_enter, before it */
	AT_ENTERED,   /* vmsrs_enter, after it: a shared lock is held */
	AT_LEAVE,     /* vmsrs_leave, before it */
	AT_COPY,      /* memcpy, memmove, memset, strcpy, strlen called by the server */
	AT_LIBRARY,   /* the same called by libvmsrs.so while the function runs */
	AT_COMMIT,    /* the driver's commit, before it */
	AT_COMMITTED, /* the driver's commit, after it */
	AT_DEFER,     /* a deferred function, after the request failed by a null write at its end */
	AT_RECOVERY,  /* the driver's recovery, before it, after a null write at the end */
	AT_RECOVERED, /* the driver's recovery, after it */
	AT_MEMBER,    /* another thread that works for the request, when its function has ended */
	AT_BESIDE,    /* the request's own thread, while two others compute and sleep for it */
	AT_HANDED,    /* the request's end, after another thread has begun it */
	AT_MOMENT,    /* <count> nanoseconds after the function began, at whatever instruction */
	POINTS,
};

/* What goes wrong. Those from SHORTEN on are changes of one call, the others are made at any point. */
enum error {
	NONE,
	NULL_WRITE,
	NULL_READ,
	BAD_FILE,
	WILD_WRITE,
	FOREIGN_WRITE,
	FOREIGN_DRAFT,
	CODE_WRITE,
	WILD_JUMP,
	DIVISION,
	INSTRUCTION,
	TRAP,
	ABORT,
	OVERFLOW,
	SMASH,
	FORTIFY,
	EXCEPTION,
	TERMINATE,
	OVERRUN,
	LATE_WRITE,
	DOUBLE_FREE,
	FOREIGN_FREE,
	C_DOUBLE_FREE,
	C_FOREIGN_FREE,
	FAIL,
	INVARIANT,
	INVARIANT_ERROR,
	LOOP,
	SLEEP,
	DEADLOCK,
	STRAY,
	KILL,
	PANIC,
	C_OVERRUN,
	OTHER_STACK,
	GLOBAL,
	SHORTEN,
	EARLY_FREE,
	FLIP,
	DIRTY,
	SKIP,
	TWICE,
	LONGER,
	SHORTER,
	ELSEWHERE,
	ERRORS,
};

/* What a thread has been told, and how far it is. */
struct arm {
	bool armed;    /* an error is to be made, or was made; until the answer is sent */
	bool options;  /* deadline and seal are for the next request */
	bool running;  /* the request's function runs */
	bool fired;
	bool stopped;
	enum point point;
	enum error error;
	enum error check; /* what the app's own check does about the request */
	unsigned long count;
	unsigned long passages;
	unsigned long long parameter;
	unsigned int deadline;
	unsigned int seal;
	const vmsrs_domain *domain;
	const vmsrs_domain *entered; /* the domain that it has entered, or NULL */
};

extern __thread struct arm arm __attribute__((tls_model("initial-exec")));

enum {
	VAULTS = 4,
	/* More threads share places in works[]. */
	WORKERS = 64,
};

/* ---- real.c ---------------------------------------------------------------------------------- */

/* The functions behind those that are exported here. */
extern struct real {
	void *(*memcpy)(void *, const void *, size_t);
	void *(*memmove)(void *, const void *, size_t);
	void *(*memset)(void *, int, size_t);
	char *(*strcpy)(char *, const char *);
	size_t (*strlen)(const char *);
	ssize_t (*recv)(int, void *, size_t, int);
	ssize_t (*send)(int, const void *, size_t, int);
	int (*ioctl)(int, unsigned long, ...);
	int (*open)(const char *, vmsrs_app **);
	int (*domain_open_with)(const vmsrs_app *, const void *, size_t, uint32_t, vmsrs_domain **);
	int (*run_with)(const vmsrs_domain *, const vmsrs_options *, vmsrs_request_fn, void *, int *);
	void *(*root)(const vmsrs_domain *);
	void *(*alloc)(const vmsrs_domain *, size_t);
	void *(*alloc_zeroed)(const vmsrs_domain *, size_t);
	int (*free)(const vmsrs_domain *, void *);
	int (*enter)(const vmsrs_request *, const vmsrs_domain *);
	int (*leave)(const vmsrs_request *, const vmsrs_domain *);
	int (*defer)(const vmsrs_request *, vmsrs_defer_fn, void *);
	void (*fail)(const char *);
	int (*app_invariant)(const vmsrs_app *, vmsrs_invariant_fn, void *);
	int (*ticket)(const vmsrs_request *, vmsrs_ticket_t *);
	int (*join)(const vmsrs_ticket_t *, vmsrs_request_fn, void *, int *);
	int (*task_new)(const vmsrs_domain *, const vmsrs_options *, vmsrs_task **);
	int (*task_step)(vmsrs_task *, vmsrs_request_fn, void *, int *);
	void (*task_free)(vmsrs_task *);
} real;

/* Code of libvmsrs.so and of the server, and the server's first variable. */
extern uintptr_t library_low, library_high, server_low, server_high, server_data;
/* A mapping of a file that has no byte. */
extern const volatile char *bad_file;

/* ---- line.c ---------------------------------------------------------------------------------- */

/* A thread that serves another connection: an address in its stack. */
extern _Atomic(char *) stacks[2];

/* ---- requests.c ------------------------------------------------------------------------------ */

/* Domains whose users nobody changes, so that their frames are sealed. */
extern _Atomic(vmsrs_domain *) vaults[VAULTS];
/* What each thread's request works on at the moment: a block of a domain that it holds, most likely with a draft. */
extern _Atomic(char *) works[WORKERS];

/* The calling thread's place in works[]. */
unsigned int worker(void);

/* ---- errors.c -------------------------------------------------------------------------------- */

/* Makes an error that needs no call to change. Returns when the request may go on. */
void make(enum error error, unsigned long long parameter);
/* Counts a passage; true when it is the one that goes wrong. */
bool passage(enum point point);
/* A passage of a point where only errors of the request's own are made. */
void strike(enum point point);
/*
 * A passage of a point where a call may be changed: the change, or NONE. An error of the request's
 * own is made before the call.
 */
enum error change(enum point point);
/* What belongs to one of the vaults; NULL before it was opened. */
char *vault_root(unsigned long long number);

/* exception.cc */
void inject_exception(void);
void inject_terminate(void);

/* ---- moment.c -------------------------------------------------------------------------------- */

/* Has the calling thread make its error arm.count nanoseconds from now; false if it cannot. */
bool begin_moment(timer_t *timer);

/* ---- threads.c ------------------------------------------------------------------------------- */

/* Makes the calling thread's helpers if it has none. Not inside of a request. */
void hire(void);
/*
 * Waits until the helpers have done what they were asked for: one that comes late must not read half
 * of its next job. Not inside of a request. A thread that never comes back shows as a hang.
 */
void await_helpers(void);
/* Whether the error of the latest job is being made, or was. */
bool helper_struck(void);
/* Has one helper compute and one sleep for the request. */
void occupy_helpers(vmsrs_request *request);
/* The request's own thread while another one makes the error: computes, sleeps, or goes on. */
void make_in_helper(vmsrs_request *request);
/* Has a helper begin the task on the domain, as its first step: what came of that. */
int begin_in_helper(vmsrs_task *task, const vmsrs_domain *domain);

#endif
