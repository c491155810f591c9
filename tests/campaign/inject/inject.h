// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * inject: makes errors in chosen requests of a server, which is not aware of it.
 *
 *   LD_PRELOAD=libinject.so ledger 7878
 *
 * The library interposes on what the server calls: libvmsrs.so, the memory and string functions of
 * the C library, and the system calls of libvmsrs.so. The client selects a request by a line of its
 * own before the request's line:
 *
 *   \1<point> <count> <error> <parameter> <deadline> <seal>\n
 *
 * The line is removed from the data of recv(2), so the server never sees it. It arms the connection
 * on which it came: in its next request, the <count>th passage of <point> (see enum point) makes <error> (see
 * enum error). <deadline> (milliseconds, 0 for none) and <seal> (0 or 1) become options of
 * vmsrs_run_with. The error "none" only sets the options.
 *
 * Before the answer to a request that was armed with an error, send(2) inserts a line:
 *
 *   \1<fired> <passages> <stopped> <left>\n
 *
 * <fired>: whether the error was made (at "member": whether the other thread reached it before the
 * end of the request); <passages>: how often the point was passed; <stopped>: 1 if a write was
 * refused with an error code instead of an exception; <left>: what of the thread's state was not as
 * before after the request, "before:" and what if that was so already when it started, or "-".
 *
 * A thread may serve several connections, one at a time: a request is of the connection on which the
 * thread has called recv(2) or send(2) last.
 *
 * With the environment variable INJECT_COPIES=<low>-<high> (hexadecimal), calls of memory functions
 * are only changed if they write to these addresses or to the request's own stack. It is for servers
 * whose requests also write to memory that nothing protects: connections, answers, statistics.
 *
 * Everything depends only on the lines received, except for the point "moment", which is a time, and
 * the error "foreign-draft", which needs another request.
 *
 * real.c     the interposed functions, and where code and data are
 * line.c     the lines to and from the client
 * requests.c start and end of requests
 * calls.c    calls of libvmsrs.so, and its system calls
 * memory.c   memory and string functions
 * threads.c  other threads that work for a request
 * moment.c   an error at a moment in time
 * errors.c   the errors
 * leave.c    errors that leave something behind on their thread
 * process.c  errors that reach the library by descriptors, children, calls and large frames
 * handler.c  jumps out of requests, and signal handlers of the server
 * wild.c     calls of every public function with a wild argument
 * state.c    what a thread carries from one request to the next
 */
#ifndef INJECT_H
#define INJECT_H

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include "vmsrs.h"
#include "vmsrs_protocol.h"

/* Interposes on a function of another library. All other functions are hidden. */
#define EXPORT __attribute__((visibility("default")))

/* Where an error strikes. */
enum point {
	AT_START,     /* the request's function starts */
	AT_END,	      /* the request's function has succeeded */
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
	AT_HANDED,    /* the request's end, after another thread has started it */
	AT_MOMENT,    /* <count> nanoseconds after the function started, at any instruction */
	POINTS,
};

/* The errors. From SHORTEN on they change one call; the others are made at any point. */
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
	MASK,
	ALT_STACK,
	CANCEL,
	LOCALE,
	CONTROLS,
	FLAGS,
	FLAGS_KEPT,
	CONTROLS_KEPT,
	CLEANUP,
	CLEANUP_JUMPED,
	PRINT,
	CAUGHT,
	UNWINDING,
	ROBUST,
	BROKEN_PIPE,
	RSEQ,
	WILD_CALL,
	LIBRARY_LOOP,
	SYSTEM,
	FRAME,
	CLOSE_LOW,
	CLOSE,
	REUSE,
	VFORK,
	JUMP,
	HANDLER,
	HANDLER_JUMP,
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

/* A thread's orders, and its state. */
struct arm {
	bool armed;    /* an error will be or has been made; until the answer is sent */
	bool options;  /* deadline and seal are for the next request */
	bool running;  /* the request's function runs */
	bool fired;
	bool stopped;
	enum point point;
	enum error error;
	enum error check; /* the error of the app's own check */
	unsigned long count;
	unsigned long passages;
	unsigned long long parameter;
	unsigned int deadline;
	unsigned int seal;
	const vmsrs_domain *domain;
	const vmsrs_domain *entered; /* the shared domain that it holds, or NULL */
	vmsrs_request *request;
	char *frame;	     /* of the request's function */
	sigjmp_buf out;	     /* out of the request */
	int reused;	     /* a descriptor of the library's that is a socket now ... */
	ino_t inode;	     /* ... with this number; 0 if there is none */
	const char *left;    /* what of the thread's state is not as it must be, or NULL */
	bool left_before;    /* it was so when the request started */
};

extern __thread struct arm arm __attribute__((tls_model("initial-exec")));

enum {
	TARGETS = 4,
	/* More threads share places in works[]. */
	WORKERS = 64,
};

/* ---- real.c ---------------------------------------------------------------------------------- */

/* The functions that are interposed on, and others of libvmsrs.so. */
extern struct real {
	void *(*memcpy)(void *, const void *, size_t);
	void *(*memmove)(void *, const void *, size_t);
	void *(*memset)(void *, int, size_t);
	char *(*strcpy)(char *, const char *);
	size_t (*strlen)(const char *);
	ssize_t (*recv)(int, void *, size_t, int);
	ssize_t (*send)(int, const void *, size_t, int);
	int (*accept)(int, struct sockaddr *, socklen_t *);
	int (*accept4)(int, struct sockaddr *, socklen_t *, int);
	int (*ioctl)(int, unsigned long, ...);
	long (*syscall)(long, ...);
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
	int (*flush)(const vmsrs_app *);
	int (*fan_out)(const vmsrs_request *, vmsrs_piece *, size_t);
	int (*pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	void (*task_free)(vmsrs_task *);
} real;

/* Code of libvmsrs.so and of the server, and the server's first variable. */
extern uintptr_t library_low, library_high, server_low, server_high, server_data;
/* Whether this is the server's own code. */
bool is_server(const void *code);
/* A mapping of an empty file. */
extern const volatile char *bad_file;

/* ---- line.c ---------------------------------------------------------------------------------- */

/* Addresses in the stacks of threads that serve connections. */
extern _Atomic(char *) stacks[2];

/* ---- requests.c ------------------------------------------------------------------------------ */

/* Domains of users that never change, so that their frames are sealed. */
extern _Atomic(vmsrs_domain *) targets[TARGETS];
/* The block that each thread's request works on, in a domain that it holds; it usually has a draft. */
extern _Atomic(char *) works[WORKERS];

/* Addresses in the request stacks of the threads; their places are those in works[]. */
extern _Atomic(char *) frames[WORKERS];

/* The calling thread's place in works[]. */
unsigned int worker(void);
/* Does nothing. */
int no_work(vmsrs_request *request, void *unused);
/* The server's app. */
vmsrs_app *opened_app(void);

/* ---- memory.c -------------------------------------------------------------------------------- */

/* Which copies are changed: those to these addresses; all if there is no end. */
extern uintptr_t copies_low, copies_high;

/* ---- errors.c -------------------------------------------------------------------------------- */

/* Makes an error that does not change a call. Returns if the request can continue. */
void make(enum error error, unsigned long long parameter);
/* Counts a passage; true if the error is due at this one. */
bool passage(enum point point);
/* A passage of a point without a call to change. */
void strike(enum point point);
/*
 * A passage of a point with a call to change: the change, or NONE. Other errors are made before the
 * call.
 */
enum error change(enum point point);
/* The root of one of the targets; NULL before it is opened. */
char *target_root(unsigned long long number);

/* exception.cc */
void inject_exception(void);
void inject_terminate(void);
void inject_caught(void (*fail)(void));
void inject_unwinding(void (*fail)(void));
/* The exceptions that the thread handles, and how many are on their way. */
void inject_exceptions(const void **caught, uint64_t *uncaught);

/* ---- leave.c, process.c, handler.c, wild.c --------------------------------------------------- */

void leave(enum error error, unsigned long long parameter);
void reach(enum error error, unsigned long long parameter);
/* If a socket has the number of a closed descriptor: checks that it is still there, and closes it. */
void check_reused(void);
/* Back to where the request was started. */
_Noreturn void jump_out(void);
/* Raises a signal that the server handles. */
void interrupt(unsigned long long which);
/* The error, in a signal handler. */
void fail_in_handler(enum error error, unsigned long long parameter);
/* Calls a function of the library with a wild argument, and fails. */
void call_wildly(unsigned long long which);

enum { RSEQ_SIZE = 32 };

/* The kernel's area of the calling thread for restartable sequences. */
static inline void *rseq_area(void)
{
	return (char *)__builtin_thread_pointer() + __rseq_offset;
}

/* ---- state.c --------------------------------------------------------------------------------- */

/* Notes the state of the calling thread, which is outside of a request, unless it is known. */
void note_state(void);
/* Compares it with what is known, outside of requests and in them. */
void check_state(void);
void check_state_inside(void);

/* ---- moment.c -------------------------------------------------------------------------------- */

/* Makes the calling thread's error arm.count nanoseconds from now; false if there is no timer. */
bool begin_moment(timer_t *timer);

/* ---- threads.c ------------------------------------------------------------------------------- */

/*
 * Creates the calling thread's helpers if it has none, and waits until they have finished: a late one
 * must not read half of its next job. Not inside of a request. A thread that never comes back shows
 * as a hang.
 */
void prepare_helpers(void);
/* Whether the error of the latest job is being or has been made. */
bool helper_struck(void);
/* What the latest job has left behind on its thread, or NULL. Waits for its end; not inside of a request. */
const char *left_by_helper(void);
/* Lets one helper compute and one sleep for the request. */
void occupy_helpers(vmsrs_request *request);
/* Lets a helper make the error, while the request's own thread computes, sleeps or continues. */
void make_in_helper(vmsrs_request *request);
/* Lets a helper run the task's first step on the domain; returns its result. */
int begin_in_helper(vmsrs_task *task, const vmsrs_domain *domain);

#endif
