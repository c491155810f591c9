// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * A TCG plugin that counts executed instructions by the address of their translation block, in
 * phases that the program under measurement marks.
 *
 * The marks are instructions that do nothing on any CPU:
 *
 *	nopl 0x5a5a0002(%rax)	the next phase
 *	nopl 0x5a5a0001(%rax)	counting starts
 *	nopl 0x5a5a0000(%rax)	counting stops
 *
 * While it counts, everything that the emulated CPU executes belongs to the phase, in whatever level
 * of virtualization: guest, host kernel, VMM. Guest and host may have code at the same addresses, so
 * they are told apart: the guest runs from a VMRUN until the host goes on after it. Phases are
 * numbered from 1. At exit the plugin writes one line for each phase and block that ran in it:
 *
 *	PHASE guest|host ADDRESS(hex) INSTRUCTIONS
 *
 * Arguments: out=FILE. Meant for one virtual CPU: with more, whatever the others do counts too.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is used of QEMU's plugin interface, version 2 and later (docs/devel/tcg-plugins). */
#define PLUGIN_VERSION 2
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*vcpu_callback)(unsigned int vcpu, void *data);
enum { CALLBACK_READS_NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
					   void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, vcpu_callback, int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, vcpu_callback, int, void *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

#define PHASES_MAX	256
#define TABLE_BITS	16

static const uint8_t mark[] = { 0x0f, 0x1f, 0x80 };
#define MARK_LENGTH	7
#define MARK_STOP	0x5a5a0000u
#define MARK_START	0x5a5a0001u
#define MARK_NEXT	0x5a5a0002u

static const uint8_t vmrun[] = { 0x0f, 0x01, 0xd8 };

struct block {
	struct block *next;		/* with the same hash */
	uint64_t address;
	bool in_guest;
	uint64_t instructions;		/* of one execution */
	uint64_t executions[PHASES_MAX];
};

static struct block *blocks[1 << TABLE_BITS];
static unsigned int phase;		/* the current one, or 0 */
static bool counting;
static bool in_guest;
static uint64_t after_vmrun;		/* where the host goes on when it has the CPU again */
static const char *out = "profile.txt";

/* Blocks are translated again and again: the same one is counted in one place. */
static struct block *block_find(uint64_t address, uint64_t instructions, bool in_guest)
{
	uint64_t hash = (address * 0x9e3779b97f4a7c15u) >> (64 - TABLE_BITS);
	struct block *block;

	for (block = blocks[hash]; block; block = block->next)
		if (block->address == address && block->instructions == instructions &&
		    block->in_guest == in_guest)
			return block;
	block = calloc(1, sizeof(*block));
	if (!block)
		abort();
	block->address = address;
	block->instructions = instructions;
	block->in_guest = in_guest;
	block->next = blocks[hash];
	blocks[hash] = block;
	return block;
}

static void on_block(unsigned int vcpu, void *data)
{
	struct block *block = data;

	(void)vcpu;
	in_guest = block->in_guest;
	if (counting)
		block->executions[phase]++;
}

static void on_mark(unsigned int vcpu, void *data)
{
	uintptr_t mark = (uintptr_t)data;

	(void)vcpu;
	counting = mark == MARK_START;
	if (mark == MARK_NEXT && phase + 1 < PHASES_MAX)
		phase++;
}

static void on_vmrun(unsigned int vcpu, void *data)
{
	(void)vcpu;
	in_guest = true;
	after_vmrun = (uintptr_t)data + sizeof(vmrun);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	uint64_t address = qemu_plugin_tb_vaddr(tb);
	/* A block is translated when it is to run, and for one of the two: QEMU never shares it. */
	struct block *block = block_find(address, count, in_guest && address != after_vmrun);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, CALLBACK_READS_NO_REGISTERS, block);
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[MARK_LENGTH];
		uint32_t value;

		if (qemu_plugin_insn_size(insn) == sizeof(vmrun) &&
		    qemu_plugin_insn_data(insn, bytes, sizeof(vmrun)) == sizeof(vmrun) &&
		    !memcmp(bytes, vmrun, sizeof(vmrun)))
			qemu_plugin_register_vcpu_insn_exec_cb(
				insn, on_vmrun, CALLBACK_READS_NO_REGISTERS,
				(void *)(uintptr_t)qemu_plugin_insn_vaddr(insn));
		if (qemu_plugin_insn_size(insn) != MARK_LENGTH ||
		    qemu_plugin_insn_data(insn, bytes, sizeof(bytes)) != MARK_LENGTH ||
		    memcmp(bytes, mark, sizeof(mark)))
			continue;
		memcpy(&value, bytes + sizeof(mark), sizeof(value));
		if (value == MARK_STOP || value == MARK_START || value == MARK_NEXT)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark,
							       CALLBACK_READS_NO_REGISTERS,
							       (void *)(uintptr_t)value);
	}
}

static void on_exit_of_qemu(qemu_plugin_id_t id, void *data)
{
	FILE *file = fopen(out, "w");

	(void)id, (void)data;
	if (!file) {
		perror(out);
		return;
	}
	for (size_t hash = 0; hash < 1 << TABLE_BITS; hash++)
		for (struct block *block = blocks[hash]; block; block = block->next)
			for (unsigned int i = 1; i <= phase; i++)
				if (block->executions[i])
					fprintf(file, "%u %s %" PRIx64 " %" PRIu64 "\n", i,
						block->in_guest ? "guest" : "host", block->address,
						block->executions[i] * block->instructions);
	if (fclose(file))
		perror(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (strncmp(argv[i], "out=", 4)) {
			fprintf(stderr, "profile plugin: unknown argument %s\n", argv[i]);
			return -1;
		}
		/* QEMU frees its arguments after this call. */
		out = strdup(argv[i] + 4);
		if (!out)
			return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
	return 0;
}
