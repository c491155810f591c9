// A program that fails as its argument says, deep in functions without frame pointers, and writes to
// standard output what the library keeps of such a failure: the registers, address and length of the
// stack's top, its bytes, and for each module bias, start, end and path (64 bytes).
#define _GNU_SOURCE
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "../../../guest-kmod/vmsrs_protocol.h"

#define STACK 8192

static void put(const void *bytes, size_t length)
{
	if (write(STDOUT_FILENO, bytes, length) != (ssize_t)length)
		_exit(3);
}

static void put_number(uint64_t number)
{
	put(&number, sizeof(number));
}

static int put_module(struct dl_phdr_info *info, size_t size, void *argument)
{
	uint64_t start = UINT64_MAX, end = 0;
	char path[64] = { 0 };

	(void)size;
	(void)argument;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		uint64_t from = info->dlpi_addr + header->p_vaddr;

		if (header->p_type != PT_LOAD)
			continue;
		start = from < start ? from : start;
		end = from + header->p_memsz > end ? from + header->p_memsz : end;
	}
	strncpy(path, info->dlpi_name[0] ? info->dlpi_name : "/opt/crash", sizeof(path) - 1);
	put_number(info->dlpi_addr);
	put_number(start);
	put_number(end);
	put(path, sizeof(path));
	return 0;
}

static void handler(int signal, siginfo_t *info, void *context)
{
	static const int order[VMSRS_REGISTERS] = {
		[VMSRS_REG_RAX] = REG_RAX, [VMSRS_REG_RBX] = REG_RBX,
		[VMSRS_REG_RCX] = REG_RCX, [VMSRS_REG_RDX] = REG_RDX,
		[VMSRS_REG_RSI] = REG_RSI, [VMSRS_REG_RDI] = REG_RDI,
		[VMSRS_REG_RBP] = REG_RBP, [VMSRS_REG_RSP] = REG_RSP,
		[VMSRS_REG_R8] = REG_R8,   [VMSRS_REG_R9] = REG_R9,
		[VMSRS_REG_R10] = REG_R10, [VMSRS_REG_R11] = REG_R11,
		[VMSRS_REG_R12] = REG_R12, [VMSRS_REG_R13] = REG_R13,
		[VMSRS_REG_R14] = REG_R14, [VMSRS_REG_R15] = REG_R15,
		[VMSRS_REG_RIP] = REG_RIP, [VMSRS_REG_RFLAGS] = REG_EFL,
	};
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal;
	(void)info;
	for (size_t i = 0; i < sizeof(order) / sizeof(*order); i++)
		put_number(registers[order[i]]);
	put_number(registers[REG_RSP]);
	put_number(STACK);
	put((void *)registers[REG_RSP], STACK);
	dl_iterate_phdr(put_module, NULL);
	_exit(0);
}

static volatile int *volatile nowhere;
static void (*volatile wild)(void) = (void (*)(void))0x30;

static inline __attribute__((always_inline)) void store(int value)
{
	*nowhere = value; // the line that fails
}

__attribute__((noinline)) static int inner(const char *how, int depth)
{
	char local[200];

	memset(local, depth, sizeof(local));
	if (!strcmp(how, "store"))
		store(depth);
	else if (!strcmp(how, "abort"))
		abort();
	else
		wild();
	return local[depth] + 1;
}

__attribute__((noinline)) static int middle(const char *how, int depth)
{
	char local[depth * 16 + 16]; // a frame whose size only its frame base knows

	memset(local, 1, sizeof(local));
	return inner(how, depth + local[3]) + local[depth];
}

__attribute__((noinline)) int outer(const char *how)
{
	return middle(how, 3) * 2;
}

int main(int argc, char **argv)
{
	// Something to keep above the stack's top, whatever the start-up code left there.
	volatile char room[STACK + 4096] = { 0 };
	static char signal_stack[65536];
	stack_t stack = { .ss_sp = signal_stack, .ss_size = sizeof(signal_stack) };
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGABRT, &action, NULL);
	return outer(argc > 1 ? argv[1] : "store") + room[0];
}
