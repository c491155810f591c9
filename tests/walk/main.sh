#!/usr/bin/env bash
# What the host does: the walk, and the checks after it. The console is its first serial port, the results are its second.
exec >/dev/ttyS0 2>&1 </dev/null
stty -F /dev/ttyS1 raw -echo
echo @start >/dev/ttyS1
# A slow machine has not loaded all modules yet, KVM for one.
udevadm settle --timeout=3600
# What the virtual machine's service says, with the guest's console.
journalctl --follow --lines=all --output=cat --unit=vmsrs@web | sed --unbuffered 's/^/guest: /' &
bash /walk/run.sh && bash /walk/after.sh
code=$?
journalctl --sync
sleep 5
[ $code = 0 ] || journalctl --no-pager --priority=notice --boot | tail --lines=100
stty -F /dev/ttyS0 raw -echo
echo "@exit $code" >/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
systemctl poweroff --force --force
