/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What zmalloc.c calls in place of the C library. */
#ifndef VMSRS_ALLOC_H
#define VMSRS_ALLOC_H

#include <stddef.h>

void *port_malloc(size_t size);
void *port_calloc(size_t count, size_t size);
void *port_realloc(void *block, size_t size);
void port_free(void *block);
size_t port_size(void *block);

/* Of zmalloc.c: what is counted is as it was before a request that has failed. */
void zmalloc_set_used_memory(size_t used);

#endif
