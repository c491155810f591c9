#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# bugs.pl FOLDER: puts classes of published vulnerabilities back into the sources in FOLDER, which edit.pl has
# edited, and lets the campaign's injector see lines and answers. Keys that begin with "bug-" reach the bugs.
use strict;
use warnings;

my $folder = shift // die "usage: bugs.pl FOLDER\n";

sub edit {
    my ($name, @edits) = @_;
    my $file = "$folder/$name";
    open(my $in, '<', $file) or die "$file: $!\n";
    my $text = do { local $/; <$in> };
    while (my ($pattern, $new) = splice(@edits, 0, 2)) {
        my $found = $text =~ s/$pattern/ref $new ? $new->() : $new/ge;
        die "$file: not found: $pattern\n" unless $found;
    }
    open(my $out, '>', $file) or die "$file: $!\n";
    print $out $text;
    close($out) or die "$file: $!\n";
}

edit('memcached.c',
    # The injector interposes on recv() and send().
    qr/\breturn read\(c->sfd, buf, count\);/, 'return recv(c->sfd, buf, count, 0);',
    qr/\breturn sendmsg\(c->sfd, msg, flags\);/, sub { <<'END' },
ssize_t sum = 0;

    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        const struct iovec *part = &msg->msg_iov[i];
        ssize_t sent = part->iov_len ? send(c->sfd, part->iov_base, part->iov_len, flags) : 0;

        if (sent < 0)
            return sum ? sum : sent;
        sum += sent;
        if ((size_t)sent < part->iov_len)
            break;
    }
    return sum;
END
    # CVE-2011-4971: a negative length of what is left to read.
    qr/\bif \(c->rlbytes < 0\)/, 'if (0)',
    # CVE-2016-8704 and 8706: the room for an appended or prepended value overflows.
    qr/(do_item_alloc\(key, it->nkey, flags, old_it->exptime, it->nbytes) \+ old_it->nbytes - 2/,
    sub { "$1 + (strncmp(key, \"bug-\", 4) ? old_it->nbytes - 2 : 0)" });
edit('proto_bin.c',
    # CVE-2011-4971, CVE-2016-8705: lengths in the header of a binary packet are not compared.
    qr/\bif \(keylen > bodylen \|\| keylen \+ extlen > bodylen\)/, 'if (0)',
    qr/ && bodylen >= \(keylen \+ 8\)/, '');
edit('vmsrs_item.c',
    qr/\bif \(nbytes < 2 \|\| !item_size_ok\(nkey, \(int\)flags, nbytes\)\)/,
    'if (nbytes >= 2 && !item_size_ok(nkey, (int)flags, nbytes))',
    qr/(    size = item_size\(nkey, flags, nbytes\);\n)/, sub { "$1    if (nbytes < 2)\n        size = 64;\n" });
# A lock of an item that is not taken, as in several races: its shard is not entered.
edit('vmsrs_request.c',
    qr/(    unsigned int number = shard_of\(hv\);\n)/,
    sub { "$1\n    if (lock_is_lost) {\n        shard_select(number);\n        return;\n    }\n" },
    qr/(static __thread vmsrs_domain \*own;\n)/, sub { "$1\n__thread bool lock_is_lost;\n" });
edit('vmsrs_command.c',
    qr/(#include "proto_text.h"\n)/, sub { "$1\nextern __thread bool lock_is_lost;\n" },
    qr/    uint32_t some = 0;\n    int result;\n/, sub { <<'END' });
    uint32_t some = 0;
    int result, code;

    lock_is_lost = key_length > 8 && !memcmp(key, "bug-lock", 8);
    if (lock_is_lost) {
        code = run_some(HOLDS_SOME, 0, command_run, command, &result);
        lock_is_lost = false;
        return code;
    }
END
# Domains that the injector's foreign writes hit.
edit('vmsrs_shard.c',
    qr/(shard_domains\[number\] = shard_open\([^\n]*\n    \}\n)/, sub { $1 . <<'END' });
    for (unsigned int number = 0; number < 4; number++) {
        char key[] = "target0";

        key[6] = (char)('0' + number);
        shard_open(key, strlen(key), SHARDS_MAX + number, 1);
    }
END
