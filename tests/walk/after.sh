#!/usr/bin/env bash
# Runs after the walk, with the guest still running: the guest is what it seems to be, survives a panic, and is turned off.
set -euo pipefail

# In the guest.
guest() {
	timeout 900 nc -N 192.168.77.2 7979 <<<"$*"
}

# One line of the ledger's answers. A guest that panics never closes its connections.
ledger() {
	printf '%s\n' "$@" QUIT | timeout 60 nc 192.168.77.2 7878
}

# All data of the ledger, without the count of questions for it.
state() {
	ledger 'USER ann' READ DIRECTORY | sed 's/listings=[0-9]*//'
}

step() {
	echo "walk: after it: $*"
}

fail() {
	echo "walk: FAILED: $*"
	exit 1
}

step 'the driver is the installed module, and nothing has failed in the guest'
file=$(guest 'cat /proc/modules | grep -c ^vmsrs; modinfo --field filename vmsrs')
echo "$file"
[[ $file = 1$'\n'/lib/modules/*/updates/dkms/vmsrs.ko* ]] || fail 'not the module of DKMS'
state=$(guest 'systemctl is-system-running --wait; systemctl --no-legend --plain list-units --failed')
echo "$state"
[[ $state = running* ]] || fail 'something in the guest has failed'
guest 'journalctl --no-pager --output=cat --unit=ledger' | grep -x 'ledger: ready on port 7878' || fail "no line of the ledger's in the journal"

step 'the guest panics, with data on its disk and in its domains'
guest 'dd if=/dev/urandom of=/var/data bs=64k count=64 status=none; sha256sum /var/data >/var/data.sum; journalctl --sync; sync'
before=$(state)
boot=$(ledger STATS)
boot=${boot#*boot=} boot=${boot%% *}
guest 'systemd-run --quiet --on-active=1 sh -c "echo c >/proc/sysrq-trigger"'
until now=$(ledger STATS) && [[ $now = *boot=* && $now != *"boot=$boot"* ]]; do
	[ "$(systemctl is-active vmsrs@web)" = active ] || fail 'vmsrs run has ended'
	sleep 1
done
echo "$now"
[[ $now = *protection=full* ]] || fail 'the server is not protected any more'

step 'domains, files and journal are whole'
after=$(state)
[ "$before" = "$after" ] || fail "before: $before, after: $after"
guest 'sha256sum --check /var/data.sum' | grep OK || fail 'a file is damaged'
fsck=$(guest 'cat /run/initramfs/fsck.log')
echo "$fsck"
[[ $fsck = *'recovering journal'*clean* ]] || fail 'the file system was not repaired by its journal'
guest 'journalctl --no-pager --output=cat --unit=ledger --boot=-1' | grep -x 'ledger: ready on port 7878' || fail 'the journal of the boot before is lost'
state=$(guest 'systemctl is-system-running --wait')
[ "$state" = running ] || fail "the guest is $state"
vmsrs status --name web
vmsrs status --name web --json | grep '"restarts":1,' >/dev/null || fail 'not one restart'

step 'the service of the metrics has them'
systemctl start vmsrs-metrics
until metrics=$(printf 'GET /metrics HTTP/1.0\r\n\r\n' | timeout 60 nc 127.0.0.1 9464) && [[ $metrics = *vmsrs_incidents_total* ]]; do
	[ "$(systemctl is-active vmsrs-metrics)" = active ] || fail 'it has ended'
	sleep 1
done
grep 'vmsrs_incidents_total{vm="web",kind="memory",outcome="recovered"} 1' <<<"$metrics" || fail "the incident is not in $metrics"

step 'the guest is turned off'
systemctl stop vmsrs@web
journalctl --no-pager --output=cat --unit=vmsrs@web | tail --lines=5
[ "$(systemctl show --property=Result --value vmsrs@web)" = success ] || fail 'the service did not end well'
e2fsck -fn /var/lib/vmsrs/web/disk.img || fail 'the file system has errors'

step 'the package is removed, and what it runs has ended'
[ "$(systemctl is-active vmsrs-metrics)" = active ] || fail 'the service of the metrics has ended before'
dpkg --remove vmsrs
units=$(systemctl list-units --no-legend --plain --state=active 'vmsrs*')
[[ $units != *.service* ]] || fail "still there: $units"
