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
 * in its next request, the <count>th passage of <point> (see struct points) makes <error> (see
 * struct errors). <deadline> (milliseconds, 0 for none) and <seal> (0 or 1) become options of
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
 * Everything is a function of the lines received, but for the point "moment", which is a time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "vmsrs.h"
#include "vmsrs_protocol.h"

#define EXPORT __attribute__((visibility("default")))

/* exception.cc */
void inject_exception(void);
void inject_terminate(void);

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

static const char *const points[POINTS] = {
	"start", "end",	    "root",   "alloc",	   "free",  "enter",	"entered",   "leave",
	"copy",	 "library", "commit", "committed", "defer", "recovery", "recovered", "member",
	"beside", "handed", "moment",
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

static const char *const errors[ERRORS] = {
	"none",		  "null-write",	   "null-read",	   "bad-file",	  "wild-write",
	"foreign-write",  "foreign-draft", "code-write",   "wild-jump",	  "division",
	"instruction",	  "trap",	   "abort",	   "overflow",	  "smash",
	"fortify",	  "exception",	   "terminate",	   "overrun",	  "late-write",
	"double-free",	  "foreign-free",  "c-double-free", "c-foreign-free", "fail",
	"invariant",	  "invariant-error",
	"loop",		  "sleep",	   "deadlock",	   "stray",	  "kill",
	"panic",	  "c-overrun",	   "other-stack",  "global",	  "shorten",
	"early-free",	  "flip",	   "dirty",	   "skip",	  "twice",
	"longer",	  "shorter",	   "elsewhere",
};

/* What a thread has been told, and how far it is. */
struct arm {
	bool armed;    /* an error is to be made, or was made; until the answer is sent */
	bool options;  /* deadline and seal are for the next request */
	bool running;  /* the request's function runs */
	bool deferring;
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
	vmsrs_request *request;
};

static __thread struct arm arm __attribute__((tls_model("initial-exec")));

enum {
	VAULTS = 4,
	/*
	 * How long requests wait for a lock. An emulated machine with other work to do may take long to
	 * get through a queue; a lock that nobody gives back is found all the same.
	 */
	PATIENCE_MS = 60000,
	/*
	 * Of requests that have no other deadline. An error that damages its own user's data may have
	 * made a ring of a list; whoever reads it later must come to an end. An ordinary request that is
	 * ended by it counts as harmed, and an error that is not endless by itself as a hang.
	 */
	DEADLINE_MS = 75000,
	/* More threads share places. */
	WORKERS = 64,
};

static vmsrs_app *app;
/* Domains whose users nobody changes, so that their frames are sealed. */
static _Atomic(vmsrs_domain *) vaults[VAULTS];
/* What each thread's request works on at the moment: a block of a domain that it holds, most likely with a draft. */
static _Atomic(char *) works[WORKERS];
/* A mapping of a file that has no byte. */
static const volatile char *bad_file;
/* A thread that serves another connection: an address in its stack. */
static _Atomic(char *) stacks[2];
static uintptr_t library_low, library_high, server_low, server_high, server_data;

/* ---- What stands behind ---------------------------------------------------------------------- */

static struct {
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

static bool contains(struct dl_phdr_info *info, uintptr_t *low, uintptr_t *high, bool writable)
{
	bool found = false;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + part->p_vaddr;

		if (part->p_type != PT_LOAD || !(part->p_flags & (writable ? PF_W : PF_X)))
			continue;
		*low = start;
		*high = start + part->p_memsz;
		found = true;
	}
	return found;
}

/* Notes where the code of the server and of libvmsrs.so is. The server is the first object. */
static int note_object(struct dl_phdr_info *info, size_t size, void *first)
{
	uintptr_t end;

	(void)size;
	if (*(bool *)first) {
		contains(info, &server_low, &server_high, false);
		contains(info, &server_data, &end, true);
	}
	*(bool *)first = false;
	if (strstr(info->dlpi_name, "libvmsrs"))
		contains(info, &library_low, &library_high, false);
	return 0;
}

__attribute__((constructor)) static void find_real(void)
{
	bool first = true;
	int file;

#define FIND(field, symbol) real.field = (__typeof__(real.field))dlsym(RTLD_NEXT, symbol)
	FIND(memcpy, "memcpy");
	FIND(memmove, "memmove");
	FIND(memset, "memset");
	FIND(strcpy, "strcpy");
	FIND(strlen, "strlen");
	FIND(recv, "recv");
	FIND(send, "send");
	FIND(ioctl, "ioctl");
	FIND(open, "vmsrs_open");
	FIND(domain_open_with, "vmsrs_domain_open_with");
	FIND(run_with, "vmsrs_run_with");
	FIND(root, "vmsrs_root");
	FIND(alloc, "vmsrs_alloc");
	FIND(alloc_zeroed, "vmsrs_alloc_zeroed");
	FIND(free, "vmsrs_free");
	FIND(enter, "vmsrs_enter");
	FIND(leave, "vmsrs_leave");
	FIND(defer, "vmsrs_defer");
	FIND(fail, "vmsrs_fail");
	FIND(app_invariant, "vmsrs_app_invariant");
	FIND(ticket, "vmsrs_ticket");
	FIND(join, "vmsrs_join");
	FIND(task_new, "vmsrs_task_new");
	FIND(task_step, "vmsrs_task_step");
	FIND(task_free, "vmsrs_task_free");
#undef FIND
	dl_iterate_phdr(note_object, &first);
	file = memfd_create("bad-file", MFD_CLOEXEC);
	bad_file = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
	if (bad_file == MAP_FAILED)
		_exit(3);
	close(file);
}

/* ---- The errors ------------------------------------------------------------------------------ */

/* Hidden from the compiler, which would make something else of what it can prove wrong. */
static volatile uintptr_t nothing;

__attribute__((noinline)) static int overflow(unsigned int depth)
{
	volatile char frame[512];

	frame[depth % sizeof(frame)] = (char)depth;
	/* Only a compiler could believe that this ends. */
	return (nothing ? 0 : overflow(depth + 1)) + frame[0];
}

/* Writes a byte by the kernel, into a frame that no process may write. False if it was stopped. */
static bool stray_write(void *place, unsigned int value)
{
	char line[96];
	int file = open("/sys/kernel/debug/vmsrs_stray/store", O_WRONLY | O_CLOEXEC);
	int length = snprintf(line, sizeof(line), "address %p 0x%x nofault", place, value & 0xff);
	bool done = file >= 0 && write(file, line, (size_t)length) == length;

	if (file >= 0)
		close(file);
	return done;
}

static void panic(void)
{
	int file = open("/proc/sysrq-trigger", O_WRONLY);

	if (file >= 0 && write(file, "c", 1) == 1)
		for (;;)
			pause();
}

static char *vault_root(unsigned long long number)
{
	vmsrs_domain *vault = atomic_load(&vaults[number % VAULTS]);

	return vault ? real.root(vault) : NULL;
}

static unsigned int worker(void)
{
	static atomic_uint workers;
	static __thread unsigned int number __attribute__((tls_model("initial-exec")));

	if (!number)
		number = 1 + atomic_fetch_add(&workers, 1);
	return number % WORKERS;
}

/* What another thread's request works on; NULL if no other is under way. */
static char *work_of_another(unsigned long long number)
{
	for (unsigned int i = 0; i < WORKERS; i++) {
		unsigned int other = (number + i) % WORKERS;
		char *work = other == worker() ? NULL : atomic_load(&works[other]);

		if (work)
			return work;
	}
	return NULL;
}

/* Makes an error that needs no call to change. Returns when the request may go on. */
static void make(enum error error, unsigned long long parameter)
{
	static pthread_mutex_t never = PTHREAD_MUTEX_INITIALIZER;
	char *place, *other;
	int ends[2];

	switch (error) {
	case NULL_WRITE:
		*(volatile char *)(nothing + parameter % 4096) = 1;
		break;
	case NULL_READ:
		nothing = *(volatile uintptr_t *)(nothing + parameter % 4088);
		break;
	case BAD_FILE: /* behind the end of a file: SIGBUS */
		nothing = (uintptr_t)bad_file[parameter % 4096] & 0;
		break;
	case WILD_WRITE: /* somewhere in the app's range, far above every domain */
		*(volatile char *)(VMSRS_APP_BASE + (1ULL << 38) + parameter % (1ULL << 38)) = 1;
		break;
	case FOREIGN_WRITE:
		place = vault_root(parameter);
		if (place)
			((volatile char *)place)[parameter % 64] ^= 0x55;
		break;
	case FOREIGN_DRAFT:
		/*
		 * Changes nothing where it is let through: a key may be shared, there being fewer than threads.
		 * Then the error was not made.
		 */
		place = work_of_another(parameter);
		if (place)
			__asm__ volatile("lock orb $0, %0" : "+m"(*(volatile char *)place));
		arm.fired = false;
		break;
	case CODE_WRITE:
		*(volatile char *)(server_low + parameter % (server_high - server_low)) = 1;
		break;
	case WILD_JUMP:
		((void (*)(void))(nothing + parameter % 4096))();
		break;
	case DIVISION:
		nothing = (unsigned int)parameter / (unsigned int)nothing;
		break;
	case INSTRUCTION:
		__asm__ volatile("ud2");
		break;
	case TRAP:
		__asm__ volatile("int3");
		break;
	case ABORT:
		abort();
	case OVERFLOW:
		nothing = (uintptr_t)overflow(0) & 0;
		break;
	case SMASH: /* what the compiler calls when it finds its canary changed */
		((void (*)(void))dlsym(RTLD_DEFAULT, "__stack_chk_fail"))();
		break;
	case FORTIFY: /* what the C library calls when a copy is longer than its target */
		((void (*)(void))dlsym(RTLD_DEFAULT, "__chk_fail"))();
		break;
	case EXCEPTION:
		inject_exception();
		break;
	case TERMINATE:
		inject_terminate();
		break;
	case OVERRUN:
		place = real.alloc(arm.domain, 24);
		if (place)
			real.memset(place, 0x5a, 25 + parameter % 15);
		break;
	case LATE_WRITE:
		place = real.alloc(arm.domain, 48);
		if (place) {
			real.free(arm.domain, place);
			place[parameter % 48] ^= 0x5a;
		}
		break;
	case DOUBLE_FREE:
		place = real.alloc(arm.domain, 32);
		real.free(arm.domain, place);
		real.free(arm.domain, place);
		break;
	case FOREIGN_FREE:
		place = real.alloc(arm.domain, 256);
		real.free(arm.domain, parameter % 2 ? place + 16 : (char *)&place);
		break;
	case C_DOUBLE_FREE:
		other = place = malloc(40);
		__asm__("" : "+r"(other));
		free(place);
		free(other);
		break;
	case C_FOREIGN_FREE:
		/* Not aligned: found before the C library takes a lock of its heap. */
		place = (char *)(((uintptr_t)&place & ~15UL) + 8);
		__asm__("" : "+r"(place));
		free(place);
		break;
	case FAIL:
		real.fail("an invariant does not hold");
		break;
	case INVARIANT:
	case INVARIANT_ERROR:
		arm.check = error;
		break;
	case LOOP:
		for (;;)
			__asm__ volatile("");
	case SLEEP:
		if (!pipe2(ends, O_CLOEXEC)) {
			char byte;

			/* Comes back with an error only when a signal that goes on interrupts it. */
			while (read(ends[0], &byte, 1) < 0)
				continue;
		}
		break;
	case DEADLOCK:
		pthread_mutex_lock(&never);
		pthread_mutex_lock(&never);
		break;
	case STRAY:
		place = vault_root(parameter);
		if (place)
			arm.stopped = !stray_write(place + parameter % 64, (unsigned int)parameter);
		break;
	case KILL:
		kill(getpid(), SIGKILL);
		break;
	case PANIC:
		panic();
		break;
	case C_OVERRUN: /* the sizes of the C library's next blocks, and what is behind */
		place = malloc(40);
		if (place)
			real.memset(place, 0x41, 4096);
		free(place);
		break;
	case OTHER_STACK: /* return addresses of a thread that waits for its client */
		place = atomic_load(&stacks[0]);
		if (place == NULL || (place > (char *)&ends && place - (char *)&ends < 1 << 20))
			place = atomic_load(&stacks[1]);
		if (place)
			real.memset(place - 512, 0x41, 1024);
		break;
	case GLOBAL: /* the server's variables, the addresses of what it calls among them */
		for (place = (char *)((server_data + 4095) & ~4095UL); place < (char *)server_data + 8192;
		     place++)
			*(volatile char *)place = 0x41;
		break;
	default:
		break;
	}
}

/* Counts a passage; true when it is the one that goes wrong. */
static bool passage(enum point point)
{
	if (!arm.armed || arm.fired || arm.point != point)
		return false;
	if (++arm.passages < arm.count)
		return false;
	arm.fired = true;
	return true;
}

/* A passage of a point where only errors of the request's own are made. */
static void strike(enum point point)
{
	if (passage(point))
		make(arm.error, arm.parameter);
}

/*
 * A passage of a point where a call may be changed: the change, or NONE. An error of the request's
 * own is made before the call.
 */
static enum error change(enum point point)
{
	if (!passage(point))
		return NONE;
	if (arm.error >= SHORTEN)
		return arm.error;
	make(arm.error, arm.parameter);
	return NONE;
}

/* ---- A moment -------------------------------------------------------------------------------- */

static int moment_signal;

static void at_moment(void)
{
	make(arm.error, arm.parameter);
	/* The instructions that this replaces are lost: there is nothing to return to. */
	abort();
}

/* Lets the thread go on as if it had jumped into at_moment(). */
static void moment(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal, (void)info;
	if (!arm.armed || arm.fired || arm.point != AT_MOMENT || !arm.running)
		return;
	arm.fired = true;
	/* Below the red zone, aligned as at a function's first instruction. */
	registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~15LL) - 8;
	registers[REG_RIP] = (greg_t)at_moment;
}

static void install_moment(void)
{
	struct sigaction action = { .sa_sigaction = moment, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	moment_signal = SIGRTMIN + 2;
	sigaction(moment_signal, &action, NULL);
}

static bool begin_moment(timer_t *timer)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = moment_signal };
	struct itimerspec time = {
		.it_value = { (time_t)(arm.count / 1000000000), (long)(arm.count % 1000000000) },
	};
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_moment);
	event.sigev_signo = moment_signal;
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, timer))
		return false;
	return !timer_settime(*timer, 0, &time, NULL);
}

/* ---- Other threads --------------------------------------------------------------------------- */

enum role { MAKE_ERROR, COMPUTE, BLOCK, BEGIN };

/* A thread that helps the thread of a connection. Lives as long as the process. */
struct helper {
	sem_t go;
	sem_t done; /* for BEGIN */
	atomic_ulong asked, finished; /* jobs */
	atomic_bool struck;	      /* the error of the latest job is being made */
	enum role role;
	enum error error;
	unsigned long long parameter;
	const vmsrs_domain *domain;
	vmsrs_ticket_t ticket;
	vmsrs_task *task;
	int code;
};

enum { HELPERS = 2 };

static __thread struct helper *helpers __attribute__((tls_model("initial-exec")));

static int help(vmsrs_request *request, void *argument)
{
	struct helper *self = argument;
	void *block;

	(void)request;
	switch (self->role) {
	case MAKE_ERROR:
		/* The request does not end before this thread has left it: whoever answers sees this. */
		atomic_store(&self->struck, true);
		make(self->error, self->parameter);
		return 0;
	case COMPUTE:
		make(LOOP, 0);
		return 0;
	case BLOCK:
		make(SLEEP, 0);
		return 0;
	default: /* something that the other thread's failure has to take back */
		block = real.alloc(self->domain, 100);
		if (block)
			real.memset(block, 0x77, 100);
		real.free(self->domain, block);
		return VMSRS_STEP_SUSPEND;
	}
}

static void *helper(void *argument)
{
	struct helper *self = argument;

	for (;;) {
		if (sem_wait(&self->go))
			continue;
		arm.domain = self->domain;
		if (self->role == BEGIN) {
			self->code = real.task_step(self->task, help, self, NULL);
			sem_post(&self->done);
		} else {
			/* Whether the request is over before, fails or not: the driver sees it. */
			self->code = real.join(&self->ticket, help, self, NULL);
		}
		atomic_fetch_add(&self->finished, 1);
	}
	return NULL;
}

/* Gives the calling thread its helpers. Not inside of a request. */
static void hire(void)
{
	struct helper *hired = calloc(HELPERS, sizeof(*hired));

	for (int i = 0; hired && i < HELPERS; i++) {
		pthread_t thread;

		sem_init(&hired[i].go, 0, 0);
		sem_init(&hired[i].done, 0, 0);
		if (pthread_create(&thread, NULL, helper, &hired[i]))
			_exit(3);
		pthread_detach(thread);
	}
	helpers = hired;
}

/*
 * Waits until the helpers have done what they were asked for: one that comes late must not read half
 * of its next job. Not inside of a request. A thread that never comes back shows as a hang.
 */
static void await_helpers(void)
{
	for (int i = 0; i < HELPERS; i++) {
		while (atomic_load(&helpers[i].finished) != atomic_load(&helpers[i].asked))
			usleep(1000);
	}
}

static void ask_helper(int number, enum role role, vmsrs_request *request)
{
	struct helper *asked = &helpers[number];

	asked->role = role;
	asked->error = arm.error;
	asked->parameter = arm.parameter;
	asked->domain = arm.domain;
	if (real.ticket(request, &asked->ticket) != VMSRS_OK)
		real.fail("the injector's ticket");
	atomic_store(&asked->struck, false);
	atomic_fetch_add(&asked->asked, 1);
	sem_post(&asked->go);
}

/* The request's own thread while another one makes the error: computes, sleeps, or goes on. */
static void make_in_helper(vmsrs_request *request)
{
	ask_helper(0, MAKE_ERROR, request);
	if (arm.parameter % 3 < 2)
		make(arm.parameter % 3 ? SLEEP : LOOP, 0);
}

/* ---- Requests -------------------------------------------------------------------------------- */

struct call {
	vmsrs_request_fn function;
	void *argument;
	int result;
};

static void deferred(void *unused)
{
	(void)unused;
	arm.deferring = true;
	strike(AT_DEFER);
	arm.deferring = false;
}

static int function(vmsrs_request *request, void *argument)
{
	struct call *call = argument;
	int result;

	arm.running = true;
	arm.request = request;
	if (arm.point == AT_DEFER && real.defer(request, deferred, NULL) != VMSRS_OK)
		real.fail("the injector's defer");
	strike(AT_START);
	if (arm.point == AT_BESIDE) {
		ask_helper(0, COMPUTE, request);
		ask_helper(1, BLOCK, request);
	}
	result = call->function(request, call->argument);
	strike(AT_END);
	strike(AT_BESIDE);
	strike(AT_HANDED);
	if (passage(AT_MEMBER))
		make_in_helper(request);
	if (arm.point == AT_DEFER || arm.point == AT_RECOVERY || arm.point == AT_RECOVERED)
		make(NULL_WRITE, 0);
	arm.running = false;
	return result;
}

/* The last step of a task: its result is the function's. */
static int last_step(vmsrs_request *request, void *argument)
{
	struct call *call = argument;

	call->result = function(request, call);
	return call->result < 0 ? call->result : VMSRS_STEP_DONE;
}

/* vmsrs_run_with() in two steps, the first of them on another thread. */
static int run_handed(const vmsrs_domain *domain, const vmsrs_options *options, struct call *call, int *result)
{
	struct helper *other = &helpers[0];
	int code = real.task_new(domain, options, &other->task);

	if (code != VMSRS_OK)
		return code;
	other->role = BEGIN;
	other->domain = domain;
	atomic_fetch_add(&other->asked, 1);
	sem_post(&other->go);
	while (sem_wait(&other->done))
		continue;
	code = other->code;
	if (code == VMSRS_OK) {
		code = real.task_step(other->task, last_step, call, NULL);
		*result = call->result;
	}
	real.task_free(other->task);
	return code;
}

EXPORT int vmsrs_run(const vmsrs_domain *domain, vmsrs_request_fn work, void *argument, int *result)
{
	struct call call = { work, argument, 0 };
	vmsrs_options options = {
		.flags = arm.seal ? VMSRS_SEAL : 0,
		.deadline_ms = arm.deadline ? arm.deadline : DEADLINE_MS,
		/* With a deadline, too: then it is the deadline that ends a wait, and the request says so. */
		.lock_timeout_ms = PATIENCE_MS,
	};
	bool timed = false;
	timer_t timer;
	int code;

	if (!arm.options && !arm.armed)
		options = (vmsrs_options){ .deadline_ms = DEADLINE_MS, .lock_timeout_ms = PATIENCE_MS };
	arm.options = false;
	if (!arm.armed) {
		code = real.run_with(domain, &options, work, argument, result);
		atomic_store(&works[worker()], NULL);
		return code;
	}
	arm.domain = domain;
	if (arm.point == AT_MOMENT)
		timed = begin_moment(&timer);
	if (arm.point == AT_HANDED)
		code = run_handed(domain, &options, &call, result);
	else
		code = real.run_with(domain, &options, function, &call, result);
	arm.running = false;
	atomic_store(&works[worker()], NULL);
	if (timed)
		timer_delete(timer);
	return code;
}

/* The app's own check, registered in the server's place: finds something, or dies, where it is told to. */
static int check(vmsrs_domain *domain, void *unused)
{
	(void)domain, (void)unused;
	if (!arm.armed)
		return 0;
	if (arm.check == INVARIANT_ERROR)
		make(NULL_WRITE, 0);
	return arm.check == INVARIANT;
}

EXPORT int vmsrs_open(const char *name, vmsrs_app **opened)
{
	int code = real.open(name, opened);

	if (code == VMSRS_OK) {
		app = *opened;
		code = real.app_invariant(app, check, NULL);
	}
	return code;
}

EXPORT int vmsrs_domain_open(const vmsrs_app *of, const void *key, size_t length, vmsrs_domain **domain)
{
	/* Users whose frames are hit by bit flips have mirrors. */
	bool mirror = length == 7 && !memcmp(key, "mirror", 6);
	int code = real.domain_open_with(of, key, length, mirror ? VMSRS_MIRROR : 0, domain);

	if (code == VMSRS_OK && length == 6 && !memcmp(key, "vault", 5))
		atomic_store(&vaults[((const char *)key)[5] % VAULTS], *domain);
	return code;
}

/* ---- Calls of the library -------------------------------------------------------------------- */

static void *flipped(void *pointer)
{
	return (void *)((uintptr_t)pointer ^ 1ULL << arm.parameter % 47);
}

EXPORT void *vmsrs_root(const vmsrs_domain *domain)
{
	/* Only pointers to what the request's own user has: see docs/campaign.md. */
	enum error error = domain == arm.domain ? change(AT_ROOT) : NONE;
	void *root = real.root(domain);

	atomic_store(&works[worker()], root);
	switch (error) {
	case FLIP:
		return flipped(root);
	case ELSEWHERE:
		return vault_root(arm.parameter);
	case SKIP:
		return NULL;
	default:
		return root;
	}
}

static void *allocate(void *(*from)(const vmsrs_domain *, size_t), const vmsrs_domain *domain, size_t size)
{
	enum error error = change(AT_ALLOC);
	void *block;

	if (error == SHORTEN)
		size -= 1 + arm.parameter % size;
	if (error == DIRTY)
		from = real.alloc;
	if (error == ELSEWHERE)
		domain = atomic_load(&vaults[arm.parameter % VAULTS]);
	block = from(domain, size);
	switch (error) {
	case EARLY_FREE:
		real.free(domain, block);
		return block;
	case FLIP:
		return domain == arm.domain ? flipped(block) : block;
	case DIRTY:
		return block ? real.memset(block, (int)(arm.parameter | 1) & 0xff, size) : NULL;
	case SKIP:
		return NULL;
	default:
		return block;
	}
}

EXPORT void *vmsrs_alloc(const vmsrs_domain *domain, size_t size)
{
	return allocate(real.alloc, domain, size);
}

EXPORT void *vmsrs_alloc_zeroed(const vmsrs_domain *domain, size_t size)
{
	return allocate(real.alloc_zeroed, domain, size);
}

EXPORT int vmsrs_free(const vmsrs_domain *domain, void *block)
{
	switch (change(AT_FREE)) {
	case SKIP:
		return VMSRS_OK;
	case TWICE:
		real.free(domain, block);
		return real.free(domain, block);
	case FLIP:
		return real.free(domain, flipped(block));
	case ELSEWHERE:
		return real.free(domain, vault_root(arm.parameter));
	default:
		return real.free(domain, block);
	}
}

EXPORT int vmsrs_enter(const vmsrs_request *request, const vmsrs_domain *domain)
{
	enum error error = change(AT_ENTER);
	int code;

	if (error == SKIP)
		return VMSRS_OK;
	code = real.enter(request, domain);
	if (error == TWICE)
		code = real.enter(request, domain);
	if (code == VMSRS_OK)
		strike(AT_ENTERED);
	return code;
}

EXPORT int vmsrs_leave(const vmsrs_request *request, const vmsrs_domain *domain)
{
	switch (change(AT_LEAVE)) {
	case SKIP:
		return VMSRS_OK;
	case TWICE:
		(void)!real.leave(request, domain);
		return real.leave(request, domain);
	default:
		return real.leave(request, domain);
	}
}

EXPORT int ioctl(int file, unsigned long number, ...)
{
	va_list arguments;
	void *argument;
	int code, error;

	va_start(arguments, number);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!arm.armed)
		return real.ioctl(file, number, argument);
	if (number == VMSRS_IOCTL_COMMIT)
		strike(AT_COMMIT);
	if (number == VMSRS_IOCTL_FAIL)
		strike(AT_RECOVERY);
	code = real.ioctl(file, number, argument);
	error = errno;
	if (number == VMSRS_IOCTL_COMMIT)
		strike(AT_COMMITTED);
	if (number == VMSRS_IOCTL_FAIL)
		strike(AT_RECOVERED);
	errno = error;
	return code;
}

/* ---- Memory and strings ---------------------------------------------------------------------- */

/* The change to a call of the C library from `caller`. */
static enum error c_change(const void *caller)
{
	uintptr_t address = (uintptr_t)caller;

	if (address - library_low < library_high - library_low) {
		strike(AT_LIBRARY);
		return NONE;
	}
	return address - server_low < server_high - server_low ? change(AT_COPY) : NONE;
}

static size_t changed(enum error error, size_t size)
{
	switch (error) {
	case LONGER:
		return size + 1 + arm.parameter % 16;
	case SHORTER:
		return size - (size ? 1 + arm.parameter % size : 0);
	case SKIP:
		return 0;
	default:
		return size;
	}
}

#define WATCHED (__builtin_expect(arm.armed && arm.running, 0))
#define CALLER __builtin_return_address(0)

EXPORT void *memcpy(void *to, const void *from, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER), size);
	if (real.memcpy)
		return real.memcpy(to, from, size);
	for (size_t i = 0; i < size; i++)
		((volatile char *)to)[i] = ((const volatile char *)from)[i];
	return to;
}

EXPORT void *memmove(void *to, const void *from, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER), size);
	if (real.memmove)
		return real.memmove(to, from, size);
	for (size_t i = 0; i < size; i++) {
		size_t place = to < from ? i : size - 1 - i;

		((volatile char *)to)[place] = ((const volatile char *)from)[place];
	}
	return to;
}

EXPORT void *memset(void *to, int value, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER), size);
	if (real.memset)
		return real.memset(to, value, size);
	for (size_t i = 0; i < size; i++)
		((volatile char *)to)[i] = (char)value;
	return to;
}

EXPORT size_t strlen(const char *text)
{
	size_t length = 0;

	if (real.strlen)
		length = real.strlen(text);
	else
		while (((const volatile char *)text)[length])
			length++;
	return WATCHED ? changed(c_change(CALLER), length) : length;
}

EXPORT char *strcpy(char *to, const char *from)
{
	enum error error = WATCHED ? c_change(CALLER) : NONE;

	if (error == SKIP)
		return to;
	real.strcpy(to, from);
	if (error == LONGER)
		to[real.strlen(to)] = '!';
	return to;
}

/* ---- The connection -------------------------------------------------------------------------- */

static int find(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

/* Takes in a line of ours. One that is malformed is a fault of the caller: the server ends. */
static void take_line(const char *line)
{
	char point[16], error[24];
	int found_point, found_error;

	memset(&arm, 0, sizeof(arm));
	if (sscanf(line, "%15s %lu %23s %llu %u %u", point, &arm.count, error, &arm.parameter, &arm.deadline,
		   &arm.seal) != 6)
		goto malformed;
	found_point = find(point, points, POINTS);
	found_error = find(error, errors, ERRORS);
	if (found_point < 0 || found_error < 0)
		goto malformed;
	arm.point = (enum point)found_point;
	arm.error = (enum error)found_error;
	arm.options = true;
	arm.armed = arm.error != NONE;
	if (arm.point == AT_MEMBER || arm.point == AT_BESIDE || arm.point == AT_HANDED) {
		if (!helpers)
			hire();
		await_helpers();
		atomic_store(&helpers[0].struck, false);
	}
	return;
malformed:
	fprintf(stderr, "inject: malformed line: %s\n", line);
	_exit(3);
}

/* recv(2) of one byte. */
static bool next_byte(int socket, char *byte)
{
	ssize_t count;

	do
		count = real.recv(socket, byte, 1, 0);
	while (count < 0 && errno == EINTR);
	return count == 1;
}

EXPORT ssize_t recv(int socket, void *buffer, size_t size, int flags)
{
	for (;;) {
		ssize_t count = real.recv(socket, buffer, size, flags);
		char line[160], *bytes = buffer;
		size_t length = 0, used = 1;

		if (!arm.running)
			atomic_store(&stacks[(uintptr_t)&line >> 23 & 1], (char *)__builtin_frame_address(0));
		if (count <= 0 || bytes[0] != 1)
			return count;
		for (;;) {
			char byte;

			if (used < (size_t)count)
				byte = bytes[used++];
			else if (!next_byte(socket, &byte))
				return 0;
			if (byte == '\n')
				break;
			if (length < sizeof(line) - 1)
				line[length++] = byte;
		}
		line[length] = 0;
		take_line(line);
		if (used < (size_t)count) {
			real.memmove(bytes, bytes + used, (size_t)count - used);
			return count - (ssize_t)used;
		}
	}
}

EXPORT ssize_t send(int socket, const void *buffer, size_t size, int flags)
{
	if (arm.armed) {
		bool fired = arm.point == AT_MEMBER ? atomic_load(&helpers[0].struck) : arm.fired;
		char line[64];
		int length = snprintf(line, sizeof(line), "\1%d %lu %d\n", fired, arm.passages, arm.stopped);

		arm.armed = false;
		if (real.send(socket, line, (size_t)length, flags | MSG_MORE) != length)
			return -1;
	}
	return real.send(socket, buffer, size, flags);
}
