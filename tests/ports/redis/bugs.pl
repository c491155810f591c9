#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# bugs.pl FOLDER: puts classes of published vulnerabilities back into the sources in FOLDER, which edit.pl has edited, and lets
# the campaign's injector see commands and replies.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../common";
use Edit;

sources(shift);

# The injector interposes on recv() and send().
in_file('src/connection.c');
within('connSocketRead', qr/\bread\(conn->fd, buf, buf_len\)/, 'recv(conn->fd, buf, buf_len, 0)');
within('connSocketWrite', qr/\bwrite\(conn->fd, data, data_len\)/, 'send(conn->fd, data, data_len, 0)');
within('connSocketWritev', qr/\bwritev\(conn->fd, iov, iovcnt\)/, 'send(conn->fd, iov->iov_base, iov->iov_len, 0)');
all(qr/^#include "server\.h"\n/m, sub { "$&#include <sys/socket.h>\n" });

# CVE-2019-10192, CVE-2019-10193, CVE-2025-32023: a sparse HyperLogLog names any number of registers.
in_file('src/hyperloglog.c');
within('hllSparseToDense', qr/\(runlen \+ idx\) > HLL_REGISTERS/, '0');
within('hllMerge', qr/\(runlen \+ i\) > HLL_REGISTERS/, '0');

# CVE-2022-31144: deleted entries do not count.
in_file('src/t_stream.c');
within('xautoclaimCommand', qr/^            count--; [^\n]*\n            continue;/m, "            continue;");

# CVE-2024-31228: patterns nest without a limit.
in_file('src/util.c');
within('stringmatchlen_impl', qr/\bnesting > 1000\b/, '0');

# CVE-2023-28425: keys are taken to be new.
in_file('src/t_string.c');
within('msetGenericCommand', qr/c->argv\[j \+ 1\], 0\)/, 'c->argv[j + 1], nx ? SETKEY_DOESNT_EXIST : 0)');

# Domains that the injector's foreign writes hit.
in_file('src/vmsrs_request.c');
all(qr/(?=^void port_open\()/m, sub { <<'END' });
static int open_target(vmsrs_request *request, void *domain) {
    return vmsrs_set_root(domain, vmsrs_alloc_zeroed(domain, 4000));
}

END
within('port_open', qr/\bkeyspace = domain;\n/, sub { $& . <<'END' });
    for (int number = 0; number < 4; number++) {
        char name[] = "target0";
        vmsrs_domain *target;

        name[6] = (char)('0' + number);
        code = vmsrs_domain_open(app, name, 7, &target);
        if (code == VMSRS_OK)
            code = vmsrs_run(target, open_target, target, NULL);
        if (code != VMSRS_OK)
            server_die(name, code);
    }
END
save();
