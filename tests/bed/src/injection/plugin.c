// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * A TCG plugin that keeps QEMU from delivering an injected interrupt twice.
 *
 * VMRUN with an interrupt to inject delivers it, but leaves its vector in the CPU's exception_index
 * (helper_vmrun() in target/i386/tcg/system/svm_helper.c, up to 11.1 at least). If the CPU leaves its
 * execution loop before the next exit or exception, because its instruction budget ends or another
 * thread wants something of it, QEMU takes that for an exception and delivers the vector again,
 * whether or not interrupts are off. A guest then spins for ever on a lock that it holds itself.
 *
 * Linux begins every interrupt with CLAC. While an instruction executes, no exception is due, so a
 * vector that is there at a CLAC is a stale one.
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
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { CALLBACK_READS_NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
					   void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *,
					    void (*)(unsigned int vcpu, void *data), int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

#define NO_EXCEPTION	(-1)

static const uint8_t clac[] = { 0x0f, 0x01, 0xca };

static char *(*cpu_state)(int vcpu);		/* qemu_get_cpu() */
static uint32_t exception_index;		/* its offset there */

static void on_clac(unsigned int vcpu, void *data)
{
	int32_t *index = (int32_t *)(cpu_state(vcpu) + exception_index);

	(void)data;
	*index = NO_EXCEPTION;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[sizeof(clac)];

		if (qemu_plugin_insn_size(insn) == sizeof(clac) &&
		    qemu_plugin_insn_data(insn, bytes, sizeof(bytes)) == sizeof(bytes) &&
		    !memcmp(bytes, clac, sizeof(clac)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_clac,
							       CALLBACK_READS_NO_REGISTERS, NULL);
	}
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
	(void)info;
	(void)argc;
	(void)argv;
	*(void **)&cpu_state = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
	if (!cpu_state || find_exception_index()) {
		fprintf(stderr, "injection plugin: this QEMU is not built like Debian's\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
