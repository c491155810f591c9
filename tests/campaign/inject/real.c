// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The interposed functions, and where code and data are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "inject.h"

struct real real;
uintptr_t library_low, library_high, server_low, server_high, server_data;
const volatile char *bad_file;

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

/* Finds the code of the server, which is the first object, and of libvmsrs.so. */
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

bool is_server(const void *code)
{
	return (uintptr_t)code - server_low < server_high - server_low;
}

__attribute__((constructor)) static void find_real(void)
{
	const char *copies;
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
	FIND(accept, "accept");
	FIND(accept4, "accept4");
	FIND(ioctl, "ioctl");
	FIND(syscall, "syscall");
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
	FIND(flush, "vmsrs_flush");
	FIND(fan_out, "vmsrs_fan_out");
	FIND(pthread_create, "pthread_create");
#undef FIND
	dl_iterate_phdr(note_object, &first);
	copies = getenv("INJECT_COPIES");
	if (copies && sscanf(copies, "%lx-%lx", &copies_low, &copies_high) != 2)
		_exit(3);
	file = memfd_create("bad-file", MFD_CLOEXEC);
	bad_file = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
	if (bad_file == MAP_FAILED)
		_exit(3);
	close(file);
}
