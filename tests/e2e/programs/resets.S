/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The smallest kernel: it is started through its PVH note, prints a line on the serial port and resets the machine.
 */
	.section .note.Xen, "a", @note
	.balign	4
	.long	4, 8, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	_start

	.text
	.code32
	.globl	_start
_start:
	cld
	movl	$line, %esi
	movw	$0x3f8, %dx
1:	lodsb
	testb	%al, %al
	jz	2f
	outb	%al, %dx
	jmp	1b
2:	movb	$0xfe, %al		/* pulse the CPU's reset line */
	outb	%al, $0x64
3:	hlt
	jmp	3b

line:	.asciz	"the kernel resets the machine\n"

	.section .note.GNU-stack, "", @progbits
