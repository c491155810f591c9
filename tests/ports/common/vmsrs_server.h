/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the ports share. */
#ifndef VMSRS_SERVER_H
#define VMSRS_SERVER_H

#include <vmsrs.h>

/* Where domains lie. */
#define DOMAINS_START 0x110000000000
#define DOMAINS_END 0x510000000000

/*
 * Opens an app that no other running process of this server has: servers share a few names, each with a lock on a file.
 * Ends the process if it cannot.
 */
void server_open_app(const char *server, vmsrs_app **app);
/* Says what failed, and ends the process. */
void server_die(const char *what, int code) __attribute__((noreturn));

#endif
