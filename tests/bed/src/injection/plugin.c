// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * A TCG plugin that keeps QEMU from delivering an injected interrupt twice.
 *
 * VMRUN with an interrupt to inject delivers it, but leaves its vector in the CPU's exception_index
 * (helper_vmrun() in target/i386/tcg/system/svm_helper.c, up to 11.1 at least). If the CPU leaves its
 * execution loop before the next exit or exception, because its instruction budget ends or another
 * thread wants something of it, QEMU takes that for an exception and delivers the vector again,
 * whether or not interrupts are off. A guest then spins forever on a lock that it holds itself, or,
 * if that happens at the first instruction of an entry to the kernel, goes on there with the
 * program's GS base or stack: it faults until its stack ends, or dies by a double fault.
 *
 * helper_vmrun() returns only when no exception is pending (otherwise it leaves by longjmp), so a
 * vector that is still set when it returns is stale.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* What is used of QEMU's plugin interface, version 2 and later (docs/devel/tcg-plugins). */
#define PLUGIN_VERSION 2
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

/* What is used of QEMU itself: the start of TCGHelperInfo, which says what translated code calls. */
typedef void vmrun_helper(void *env, int address_size, int instruction_bytes);
struct helper_info {
	vmrun_helper *function;
	const char *name;
};

extern __thread char *current_cpu;

#define NO_EXCEPTION	(-1)

static vmrun_helper *helper_vmrun;
static uint32_t exception_index;		/* its offset in a CPU's state */

static void vmrun(void *env, int address_size, int instruction_bytes)
{
	helper_vmrun(env, address_size, instruction_bytes);
	*(int32_t *)(current_cpu + exception_index) = NO_EXCEPTION;
}

/*
 * cpu_loop_exit_noexc(cpu) only sets cpu->exception_index to -1 before it leaves: the offset is in its
 * `movl $-1, offset(%rdi)`.
 */
static int find_exception_index(void)
{
	static const uint8_t store[] = { 0xc7, 0x87 }, none[] = { 0xff, 0xff, 0xff, 0xff };
	const uint8_t *code = dlsym(RTLD_DEFAULT, "cpu_loop_exit_noexc");

	for (size_t i = 0; code && i < 16; i++) {
		if (memcmp(code + i, store, sizeof(store)) || memcmp(code + i + 6, none, sizeof(none)))
			continue;
		memcpy(&exception_index, code + i + 2, sizeof(exception_index));
		return 0;
	}
	return -1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	struct helper_info *helper = dlsym(RTLD_DEFAULT, "helper_info_vmrun");

	(void)id;
	(void)info;
	(void)argc;
	(void)argv;
	*(void **)&helper_vmrun = dlsym(RTLD_DEFAULT, "helper_vmrun");
	if (!helper || !helper_vmrun || helper->function != helper_vmrun ||
	    strcmp(helper->name, "vmrun") || find_exception_index()) {
		fprintf(stderr, "injection plugin: this QEMU is not built like Debian's\n");
		return -1;
	}
	helper->function = vmrun;
	return 0;
}
