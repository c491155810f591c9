// SPDX-License-Identifier: GPL-2.0
/*
 * Accesses to pages whose memory may be broken.
 *
 * The kernel's own copy_mc_to_kernel() survives a machine check only on some CPUs, and takes three
 * times as many steps on a CPU without fast short string moves.
 */
#include <linux/errno.h>

#include <asm/asm.h>

#include "vmsrs.h"

/**
 * vmsrs_copy_page() - copy a page
 * @to: where to, aligned to 8 bytes
 * @from: where from, aligned to 8 bytes
 *
 * The memory of either may be broken.
 *
 * Return: 0; -EIO: an access ended with an exception, and a part was copied at most.
 */
int vmsrs_copy_page(void *to, const void *from)
{
	unsigned long left = PAGE_SIZE / sizeof(u64);

	asm volatile("1:	rep movsq\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE)
		     : "+c" (left), "+D" (to), "+S" (from)
		     :
		     : "memory");
	return left ? -EIO : 0;
}

/**
 * vmsrs_clear_page() - fill a page with zeros
 * @to: the page, aligned to 8 bytes; its memory may be broken
 *
 * Return: 0; -EIO: an access ended with an exception, and a part was cleared at most.
 */
int vmsrs_clear_page(void *to)
{
	unsigned long left = PAGE_SIZE / sizeof(u64);

	asm volatile("1:	rep stosq\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE)
		     : "+c" (left), "+D" (to)
		     : "a" (0UL)
		     : "memory");
	return left ? -EIO : 0;
}

/**
 * vmsrs_same_page() - compare two pages
 * @a: a page, aligned to 8 bytes
 * @b: the other one
 *
 * The memory of either may be broken.
 *
 * Return: true if both can be read and are the same.
 */
bool vmsrs_same_page(const void *a, const void *b)
{
	unsigned long left = PAGE_SIZE / sizeof(u64);
	bool differ = true;

	asm volatile("1:	repe cmpsq\n"
		     "	setne %[differ]\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE)
		     : "+c" (left), "+D" (a), "+S" (b), [differ] "+qm" (differ)
		     :
		     : "memory", "cc");
	return !differ;
}

/**
 * vmsrs_same_bytes() - compare parts of two pages
 * @a: a part of a page
 * @b: the other one
 * @count: how many bytes, at least one
 *
 * The memory of either may be broken.
 *
 * Return: true if both can be read and are the same.
 */
bool vmsrs_same_bytes(const void *a, const void *b, size_t count)
{
	bool differ = true;

	asm volatile("1:	repe cmpsb\n"
		     "	setne %[differ]\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE)
		     : "+c" (count), "+D" (a), "+S" (b), [differ] "+qm" (differ)
		     :
		     : "memory", "cc");
	return !differ;
}
