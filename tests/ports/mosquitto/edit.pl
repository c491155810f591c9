#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# edit.pl FOLDER: edits the sources of mosquitto 2.0 in FOLDER so that they call what vmsrs_port.h declares.
#
# common/Edit.pm says how.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../common";
use Edit;

sources(shift);

# ---- State: the database is in the domain; sockets, clocks and what is read are not
in_file('lib/mosquitto_internal.h');
all(qr/^\ttime_t last_msg_in;\n/m, "\tstruct connection *conn;\n");
all(qr/^\tstruct mosquitto__packet in_packet;\n/m, '');
in_file('src/mosquitto_broker_internal.h');
all(qr/^extern struct mosquitto_db db;\n/m, "#include \"vmsrs_port.h\"\n");
all(qr/^\ttime_t now_s;[^\n]*\n\ttime_t now_real_s;[^\n]*\n/m, "\tstruct broker_clock *clock;\n");
all(qr/^\tint persistence_changes;\n/m,
    "\tunsigned long memcount;\n\tstruct session_expiry_list *expiry_list;\n\tstruct will_delay_list *delay_list;\n");
in_file('lib/util_mosq.c');
all(qr/(?<!->)\blast_msg_in\b/, 'last_in');
in_file('src/session_expiry.c');
all(qr/^static struct session_expiry_list \*expiry_list = NULL;\n/m, '');
all(qr/\bexpiry_list\b/, 'db.expiry_list');
in_file('src/will_delay.c');
all(qr/^static struct will_delay_list \*delay_list = NULL;\n/m, '');
all(qr/\bdelay_list\b/, 'db.delay_list');

# ---- Start and end
in_file('src/mosquitto.c');
all(qr/^struct mosquitto_db db;\n/m, '');
within('main', qr/\bmemset\(&db, 0, sizeof\(struct mosquitto_db\)\);/, 'broker_init();');
within('main', qr/\bdb__open\(&config\)/, 'broker_open(&config)');
within('main', qr/\bsys_tree__init\(\);/, 'broker_do(sys_tree__init);');
within('main', qr/\bsession_expiry__remove_all\(\);/, 'broker_do(session_expiry__remove_all);');
my $locals = "\tstruct mosquitto *ctxt, *ctxt_tmp;\n\n";
moved('main', qr/^\tHASH_ITER\(hh_id, db\.contexts_by_id, ctxt, ctxt_tmp\)\{\n\t\tif\(ctxt && !ctxt->clean_start.*?^\t\}\n/ms,
    "static void find_acls(void)\n", "\tbroker_do(find_acls);\n");
moved('main', qr/^\tHASH_ITER\(hh_id, db\.contexts_by_id, ctxt, ctxt_tmp\)\{\n\t\tcontext__send_will.*?^\twill_delay__send_all\(\);\n/ms,
    "static void send_wills(void)\n", "\tbroker_do(send_wills);\n");
moved('main', qr/^\tHASH_ITER\(hh_id, db\.contexts_by_id, ctxt, ctxt_tmp\)\{\n#ifdef WITH_WEBSOCKETS.*?^\tdb__close\(\);\n/ms,
    "static void free_all(void)\n", "\tbroker_do(free_all);\n");
within($_, qr/^\{\n/m, sub { "{\n$locals" }) for qw(send_wills free_all);
within('find_acls', qr/^\{\n/m, sub { "{\n\tint rc;\n$locals" });
within('main', qr/^\tstruct mosquitto \*ctxt, \*ctxt_tmp;\n/m, '');
within('listeners__start', qr/\bdb__close\(\);/, '(void)0;');

# ---- The loop: a request for each piece of housekeeping
in_file('src/loop.c');
within('mosquitto_main_loop', qr/\bqueue_plugin_msgs\(\);/, "if(db.plugin_msgs) broker_do(queue_plugin_msgs);");
within('mosquitto_main_loop', qr/\bcontext__free_disused\(\);/, 'broker_free_disused();');
within('mosquitto_main_loop', qr/\bsys_tree__update\(/, 'broker_sys_tree(');
within('mosquitto_main_loop', qr/\bsession_expiry__check\(\);/, 'broker_expire_sessions();');
within('mosquitto_main_loop', qr/\bwill_delay__check\(\);/, 'broker_send_delayed_wills();');
within('mosquitto_main_loop', qr/\bplugin__handle_tick\(\);/, 'broker_tick();');
within('mosquitto_main_loop', qr/\bmosquitto_security_cleanup\(true\);\s*mosquitto_security_init\(true\);\s*mosquitto_security_apply\(\);/,
    'broker_reload_security();');
all(qr/^void do_disconnect\(/m, 'void disconnect_inside(');
in_file('src/logging.c');
within('log__vprintf', qr/\bdb__messages_easy_queue\(NULL, topic, [^;]*;/, 'broker_log(topic, log_line);');

# ---- Packets: read outside, worked on in a request, sent when it is committed
in_file('lib/packet_mosq.c');
without($_) for qw(packet__queue packet__write packet__cleanup_all packet__cleanup_all_no_locks);
within('packet__alloc', qr/\bmosquitto__malloc\(sizeof\(uint8_t\)\*packet->packet_length\)/, 'arena_room(packet->packet_length)');
within('packet__read', qr/\bhandle__packet\(mosq\)/, 'broker_packet(mosq)');
for my $file (qw(src/send_auth.c src/send_connack.c src/send_suback.c src/send_unsuback.c lib/send_disconnect.c lib/send_mosq.c
                 lib/send_publish.c)) {
    in_file($file);
    all(qr/\bmosquitto__calloc\(1, sizeof\(struct mosquitto__packet\)\)/, 'arena_zeroed(1, sizeof(struct mosquitto__packet))');
}
in_file('lib/net_mosq.c');
within('net__socket_close', qr/\brc = COMPAT_CLOSE\(mosq->sock\);/, 'connection_close(mosq);');
within('net__socket_close', qr/^(\t+)(mosq->listener->client_count)--;/m, sub { "$1broker_keep(&$2);\n$1$2--;" });
in_file('src/net.c');
within('net__socket_accept', qr/\baccept\(listensock->sock, NULL, 0\)(?=;\s*if\(new_sock == INVALID_SOCKET\))/,
    'connection_accept(listensock->sock)');
within('net__socket_accept', qr/^(\t)(new_context->listener->client_count)\+\+;/m, sub { "$1broker_keep(&$2);\n$1$2++;" });
in_file('src/context.c');
within('context__init', qr/^\tcontext->in_packet\.payload = NULL;\n\tpacket__cleanup\(&context->in_packet\);\n/m, '');
within('context__init', qr/(?=^\tmosquitto__set_state\()/m, "\tcontext->conn = connection_for(sock);\n");
in_file('src/database.c');
all(qr/\bcontext->out_packet_count\b/, 'connection_outputs(context)');
in_file('src/handle_publish.c');
all(qr/\bcontext->out_packet_count\b/, 'connection_outputs(context)');
in_file('src/handle_subscribe.c');
all(qr/\bcontext->current_out_packet == NULL\b/, '!connection_is_behind(context)');

in_file('src/handle_connect.c');
within('connect__on_authorised', qr/(HASH_FIND\(hh_id, db\.contexts_by_id, context->id, strlen\(context->id\), found_context\);\s*if\(found_context\)\{\n)/,
    sub { "$1\t\tbroker_takes_over(found_context);\n" });

# ---- Memory: all by mosquitto's own functions, but for the levels of a topic, which end with the request
in_file('src/topic_tok.c');
within('sub__topic_tokenise', qr/\bmosquitto__strdup\(/, 'arena_strdup(');
within('sub__topic_tokenise', qr/\bmosquitto__calloc\(/, 'arena_zeroed(');
in_file('lib/property_mosq.c');
all(qr/(?<![\w>])(?=(?:malloc|calloc|strdup|free)\()/, 'mosquitto__');
save();
