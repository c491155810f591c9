#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# bugs.pl FOLDER: puts classes of published vulnerabilities back into the sources in FOLDER, which edit.pl has
# edited, and lets the campaign's injector see packets and answers. Clients and topics that begin with "bug-" reach
# those that others would.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../common";
use Edit;

sources(shift);

# The injector interposes on recv() and send(). Its lines come before packets: other bytes may look like them.
in_file('lib/packet_mosq.c');
within('packet__read', qr/(if\(!mosq->in_packet\.command\)\{\s*read_length = )net__read\(mosq, &byte, 1\);/,
    sub { "$1recv(mosq->sock, &byte, 1, 0);" });
all(qr/(#include "packet_mosq\.h"\n)/, sub { "$1#include <sys/socket.h>\n" });
in_file('src/vmsrs_connection.c');
within('send_some', qr/\bwrite\(connection->sock, bytes \+ sent, length - sent\)/,
    'send(connection->sock, bytes + sent, length - sent, 0)');

# CVE-2019-11779: any number of levels in a topic.
in_file('lib/util_topic.c');
all(qr/\bif\(hier_count > TOPIC_HIERARCHY_LIMIT\)/, 'if(0)');

# A will that is used after it was freed.
in_file('lib/will_mosq.c');
within('will__clear', qr/\bmosq->will = NULL;/,
    'if(!mosq->id || strncmp(mosq->id, "bug-will", 8)) mosq->will = NULL;');

# Lengths of strings and binary data, of properties among others, are not compared with their packet's. A string that
# begins with "bug-string" is copied to a block that is too short.
in_file('lib/packet_datatypes.c');
within('packet__read_binary', qr/\bif\(packet->pos\+slen > packet->remaining_length\)/, 'if(0)');
within('packet__read_binary', qr/\bmosquitto__malloc\(slen\+1U\)/,
    'mosquitto__malloc(slen > 32 && !memcmp(&packet->payload[packet->pos], "bug-string", 10) ? slen-20U : slen+1U)');

# Levels of a topic that begins with "bug-stale" are read from memory that nothing was written to.
in_file('src/topic_tok.c');
within('sub__topic_tokenise', qr/\barena_strdup\(subtopic\)/,
    '(strncmp(subtopic, "bug-stale", 9) ? arena_strdup(subtopic) : arena_room(len + 1))');

# Domains that the injector's foreign writes hit.
in_file('src/vmsrs_request.c');
all(qr/(?=^int broker_open\()/m, sub { <<'END' });
static int open_target(vmsrs_request *request, void *domain) {
    return vmsrs_set_root(domain, vmsrs_alloc_zeroed(domain, 4000));
}

END
within('broker_open', qr/\bbroker_domain = domain;\n/, sub { $& . <<'END' });
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
