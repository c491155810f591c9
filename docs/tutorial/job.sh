#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs the tutorial's session on the test-bed's KVM host: boots the guest, sends requests to the
# server in it, and shows what the host recorded. Needs vmsrs, vmlinuz, guest.img and lists-static in
# this folder.
set -eu

vmsrs run --kernel vmlinuz --initramfs guest.img --memory 256M --window 64M \
	--tap tap0,192.168.77.1/24 --console guest.log &
tries=300
until nc -w 2 192.168.77.2 7000 </dev/null 2>/dev/null; do
	kill -0 $! || exit 1
	tries=$((tries - 1))
	if [ $tries = 0 ]; then
		echo 'the server in the guest does not answer; last lines of its console:' >&2
		tail -n 30 guest.log >&2
		kill -TERM $!
		exit 1
	fi
	sleep 1
done
grep 'vmsrs' guest.log || true

talk() {
	echo "\$ nc 192.168.77.2 7000"
	printf '%s\n' "$@"
	printf '%s\n' "$@" | nc 192.168.77.2 7000
}
talk 'alice set 0 milk' 'bob set 0 tea'
talk 'alice append 0 eggs'
talk 'alice save'
talk 'alice show' 'bob show'
for command in 'incidents' 'incidents 1 --symbols .' 'incidents 3 --symbols .' 'status'; do
	echo "\$ vmsrs $command"
	vmsrs $command
done
kill -TERM $!
wait $!
