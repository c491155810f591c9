// SPDX-License-Identifier: GPL-2.0
/*
 * Evidence: what a program saves about a failed request for its developer. It is read when the
 * request's drafts are gone and its locks are free, so only the failed thread waits for it, and
 * the report does not depend on it.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "vmsrs.h"

static void note_registers(const struct pt_regs *regs, u64 *registers)
{
	registers[VMSRS_REG_RAX] = regs->ax;
	registers[VMSRS_REG_RBX] = regs->bx;
	registers[VMSRS_REG_RCX] = regs->cx;
	registers[VMSRS_REG_RDX] = regs->dx;
	registers[VMSRS_REG_RSI] = regs->si;
	registers[VMSRS_REG_RDI] = regs->di;
	registers[VMSRS_REG_RBP] = regs->bp;
	registers[VMSRS_REG_RSP] = regs->sp;
	registers[VMSRS_REG_R8] = regs->r8;
	registers[VMSRS_REG_R9] = regs->r9;
	registers[VMSRS_REG_R10] = regs->r10;
	registers[VMSRS_REG_R11] = regs->r11;
	registers[VMSRS_REG_R12] = regs->r12;
	registers[VMSRS_REG_R13] = regs->r13;
	registers[VMSRS_REG_R14] = regs->r14;
	registers[VMSRS_REG_R15] = regs->r15;
	registers[VMSRS_REG_RIP] = regs->ip;
	registers[VMSRS_REG_RFLAGS] = regs->flags;
}

/**
 * vmsrs_evidence_registers() - fill in where the current thread entered the kernel
 * @body: report; if the library gave registers, they stay
 *
 * The thread dies in its request, so that is where the request was.
 */
void vmsrs_evidence_registers(struct vmsrs_incident_report *body)
{
	BUILD_BUG_ON(ARRAY_SIZE(body->registers) != VMSRS_REGISTERS);
	if (current->flags & PF_KTHREAD ||
	    memchr_inv(body->registers, 0, sizeof(body->registers)))
		return;
	note_registers(task_pt_regs(current), body->registers);
}

/**
 * vmsrs_evidence_valid() - check the lengths of the evidence
 * @fail: argument of the ioctl
 */
bool vmsrs_evidence_valid(const struct vmsrs_ioctl_fail *fail)
{
	return fail->stack_bytes <= VMSRS_STACK_MAX && fail->modules_bytes <= VMSRS_MODULES_MAX &&
	       fail->text_bytes <= VMSRS_TEXT_MAX;
}

/* Reads a part from the calling program; returns its length, or 0 if it cannot be read. */
static u32 take(void *to, u64 from, u32 length)
{
	return copy_from_user(to, u64_to_user_ptr(from), length) ? 0 : length;
}

/**
 * vmsrs_evidence_take() - read evidence from the calling program and queue it
 * @dev: the device
 * @fail: argument of the ioctl, with the number of the incident
 */
void vmsrs_evidence_take(struct vmsrs_device *dev, const struct vmsrs_ioctl_fail *fail)
{
	struct vmsrs_evidence *evidence;
	size_t length = sizeof(*evidence) + fail->stack_bytes + fail->modules_bytes +
			fail->text_bytes;
	struct vmsrs_report *report;
	u8 *bytes;

	BUILD_BUG_ON(2 * sizeof(struct vmsrs_control_header) + sizeof(*evidence) + VMSRS_STACK_MAX +
		     VMSRS_MODULES_MAX + VMSRS_TEXT_MAX > VMSRS_MESSAGE_BYTES_MAX);
	if (length == sizeof(*evidence))
		return;
	report = vmsrs_report_new_evidence(dev, length);
	if (!report)
		return;
	evidence = report->evidence;
	memset(evidence, 0, sizeof(*evidence));
	evidence->incident = fail->incident;
	evidence->stack = fail->stack;
	evidence->stack_low = fail->stack_low;
	evidence->stack_high = fail->stack_high;
	bytes = (u8 *)(evidence + 1);
	evidence->stack_bytes = take(bytes, fail->stack, fail->stack_bytes);
	bytes += evidence->stack_bytes;
	evidence->modules_bytes = take(bytes, fail->modules, fail->modules_bytes);
	bytes += evidence->modules_bytes;
	evidence->text_bytes = take(bytes, fail->text, fail->text_bytes);
	vmsrs_report_queue(dev, report);
}
