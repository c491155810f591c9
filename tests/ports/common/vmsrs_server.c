// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "vmsrs_server.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

void server_die(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, vmsrs_strerror(code));
    exit(EXIT_FAILURE);
}

void server_open_app(const char *server, vmsrs_app **app) {
    char path[96], name[48];

    for (unsigned int i = 0; i < 48; i++) {
        int file;

        snprintf(path, sizeof(path), "/tmp/%s-vmsrs-%u-%u.lock", server, (unsigned int)geteuid(), i);
        file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file >= 0 && !flock(file, LOCK_EX | LOCK_NB)) {
            int code;

            snprintf(name, sizeof(name), "%s-%u", server, i);
            code = vmsrs_open(name, app);
            if (code != VMSRS_OK)
                server_die(name, code);
            return;
        }
        if (file >= 0)
            close(file);
    }
    server_die("too many servers", VMSRS_ELIMIT);
}
