/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Whether the thread is in a request, and where blocks go; without redis' headers, whose malloc() is not to be called. */
#ifndef VMSRS_INSIDE_H
#define VMSRS_INSIDE_H

#include <stdbool.h>
#include <stddef.h>

#include "vmsrs_server.h"

/* ---- vmsrs_request.c */

extern const vmsrs_domain *keyspace;
/* Of this thread; only the main one has requests. */
extern __thread bool inside;

/* ---- vmsrs_alloc.c */

/* How deep the thread is in functions whose blocks are ordinary memory. */
extern __thread int outside;

void scratch_open(void);
/* Memory outside of domains, until scratch_end(), between pages that nobody can touch. Null if there is no more. */
void *scratch_alloc(size_t bytes);
void scratch_end(void);

#endif
