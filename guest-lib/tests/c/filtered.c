// Requests under a filter of system calls that knows those of the library (docs/reference.md) and what any C program needs.
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "vmsrs.h"

// As the documentation lists them.
static const unsigned short of_the_library[] = {
	SYS_clone, SYS_clone3, SYS_close, SYS_exit, SYS_fadvise64, SYS_fcntl, SYS_fstat, SYS_futex, SYS_getpid, SYS_get_robust_list,
	SYS_getdents64, SYS_getppid, SYS_gettid, SYS_ioctl, SYS_kcmp, SYS_kill, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_munmap, SYS_openat, SYS_pkey_alloc,
	SYS_pkey_mprotect, SYS_prlimit64, SYS_process_vm_readv, SYS_process_vm_writev, SYS_read, SYS_rseq, SYS_rt_sigaction,
	SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_set_robust_list, SYS_sigaltstack, SYS_tgkill,
	SYS_timer_create, SYS_timer_delete, SYS_timer_settime, SYS_write,
};
// The C library's own, for this program.
static const unsigned short of_the_program[] = {
	SYS_brk, SYS_clock_gettime, SYS_exit_group, SYS_getrandom, SYS_lseek, SYS_newfstatat, SYS_sched_getaffinity,
};

static vmsrs_domain *domain;

static void unknown(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	fprintf(stderr, "a system call that is not listed: %d\n", info->si_syscall);
	_exit(1);
}

static void filter(void)
{
	enum { LIBRARY = sizeof(of_the_library) / sizeof(*of_the_library) };
	enum { PROGRAM = sizeof(of_the_program) / sizeof(*of_the_program) };
	struct sock_filter code[LIBRARY + PROGRAM + 3] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog program = { .len = LIBRARY + PROGRAM + 3, .filter = code };
	struct sigaction action = { .sa_sigaction = unknown, .sa_flags = SA_SIGINFO };

	for (int i = 0; i < LIBRARY + PROGRAM; i++) {
		unsigned number = i < LIBRARY ? of_the_library[i] : of_the_program[i - LIBRARY];

		code[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number,
							   LIBRARY + PROGRAM - i, 0);
	}
	code[LIBRARY + PROGRAM + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
	code[LIBRARY + PROGRAM + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	check(!sigaction(SIGSYS, &action, NULL), "a handler");
	check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no privileges");
	check(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "a filter");
}

static int nothing(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	return 7;
}

static int crash(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	*(volatile int *)8 = 1;
	return 0;
}

static int keep_and_crash(vmsrs_request *request, void *number)
{
	check(vmsrs_keep(request, number, sizeof(int)) == VMSRS_OK, "a variable that goes back");
	*(int *)number = 2;
	return crash(request, number);
}

static int call_abort(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	abort();
}

static int fan_out(vmsrs_request *request, void *argument)
{
	vmsrs_piece pieces[2] = { { .function = nothing }, { .function = nothing } };

	(void)argument;
	return vmsrs_fan_out(request, pieces, 2);
}

static void *use(void *argument)
{
	int result = 0, number = 1;

	check(vmsrs_run(domain, nothing, NULL, &result) == VMSRS_OK && result == 7, "a request");
	check(vmsrs_run(domain, crash, NULL, NULL) == VMSRS_EFAILED, "one that crashes");
	check(vmsrs_run(domain, keep_and_crash, &number, NULL) == VMSRS_EFAILED && number == 1, "one that has kept a variable");
	check(vmsrs_run(domain, call_abort, NULL, NULL) == VMSRS_EFAILED, "one that aborts");
	check(vmsrs_run(domain, fan_out, NULL, &result) == VMSRS_OK && !result, "one with pieces");
	return argument;
}

int main(void)
{
	vmsrs_app *app, *another;
	pthread_t thread;

	check(!vmsrs_open("filtered", &app), "the app opens");
	filter();
	check(!vmsrs_domain_open(app, "alice", 5, &domain), "a domain opens");
	use(NULL);
	check(!pthread_create(&thread, NULL, use, NULL) && !pthread_join(thread, NULL), "a thread");
	check(!vmsrs_open("another", &another), "another app opens");
	return 0;
}
