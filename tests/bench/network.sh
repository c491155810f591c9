#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Measures TCP between host and guest with iperf3, on the test-bed's deterministic KVM host: its clock counts instructions,
# one per nanosecond, so that 1 Gbit/s is one bit per instruction of the machine, and every machine has the same result.
#
#   network.sh [VMSRS [OPTION ...]]    the program to measure, and more options for its `run`
set -eu

here=$(dirname "$(readlink -f "$0")")
project=$here/../..
vmsrs=${1:-$project/target/release/vmsrs}
[ $# = 0 ] || shift
cache=${VMSRS_CACHE:-$project/build/cache}
bed=$project/target/release/bed

# Debian's iperf3 with the libraries that are its own, unpacked and not installed.
iperf=$cache/iperf3
if ! [ -d "$iperf" ]; then
	new=$(mktemp -d "$cache/fetch-XXXXXX")
	trap 'rm -rf "$new"' EXIT
	(cd "$new" && apt-get -o APT::Sandbox::User=root -qq download iperf3 libiperf0 libsctp1)
	for package in "$new"/*.deb; do
		dpkg-deb --extract "$package" "$new/tree"
	done
	mv "$new/tree" "$iperf"
fi
LD_LIBRARY_PATH=$iperf/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH
libraries=$(ldd "$iperf/usr/bin/iperf3" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p')

place=$(mktemp -d)
trap 'rm -rf "$place" ${new:+"$new"}' EXIT
kernel=$(echo "$cache"/linux-6.12/boot/vmlinuz-*)
modules=$cache/linux-6.12/lib/modules/${kernel##*/vmlinuz-}/kernel
guest=$place/guest
mkdir -p "$guest/bin" "$guest/modules" "$guest/lib/x86_64-linux-gnu" "$guest/lib64" \
	"$guest/proc" "$guest/sys" "$guest/dev"
for module in net/core/failover drivers/net/net_failover drivers/virtio/virtio_mmio drivers/net/virtio_net; do
	xz --decompress --stdout "$modules/$module.ko.xz" >"$guest/modules/${module##*/}.ko"
done
cp "$cache"/busybox/*/busybox "$guest/bin/" 2>/dev/null || cp "$cache"/busybox/usr/bin/busybox "$guest/bin/"
cp "$iperf/usr/bin/iperf3" "$guest/bin/"
cp --dereference $libraries "$guest/lib/x86_64-linux-gnu/"
cp --dereference /lib64/ld-linux-x86-64.so.2 "$guest/lib64/"
cat >"$guest/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in failover net_failover virtio_mmio virtio_net; do
	insmod /modules/$module.ko
done
ip link set lo up
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
mkdir /tmp
echo the guest is ready
exec iperf3 -s >/dev/null
INIT
chmod +x "$guest/init"
tar -C "$place" -cf "$place/guest.tar" guest

cat >"$place/job.sh" <<'JOB'
mkdir libraries
mv lib*.so* libraries
tar -xf guest.tar
vmsrs run --kernel vmlinuz --initramfs guest --memory 256M --window 64M --on-reboot exit \
	--tap tap0,192.168.77.1/24 --console guest.log "$@" &
tries=600
until grep -q 'the guest is ready' guest.log; do
	tries=$((tries - 1))
	if [ $tries = 0 ] || ! kill -0 $!; then
		cat guest.log
		exit 1
	fi
	sleep 0.1
done
sleep 0.5
measure() {
	name=$1
	shift
	LD_LIBRARY_PATH=$PWD/libraries ./iperf3 -c 192.168.77.2 -f m -t 1 "$@" >log 2>&1 || cat log
	sed -n "s/.* \([0-9.]* Mbits\/sec\).*receiver/$name: \1/p" log >>"$VMSRS_RESULTS"
}
measure 'host to guest'
measure 'guest to host' -R
measure 'host to guest, writes of 1 KiB' -l 1K
measure 'guest to host, writes of 1 KiB' -R -l 1K
kill -TERM $!
wait $!
JOB

set -- sh job.sh "$@"
for library in $libraries; do
	set -- --file "$library=${library##*/}" "$@"
done
LD_LIBRARY_PATH= "$bed" run --deterministic --timeout 1800 --memory 1024 --program "$vmsrs=vmsrs" \
	--file "$iperf/usr/bin/iperf3=iperf3" --file "$kernel=vmlinuz" --file "$place/guest.tar=guest.tar" \
	--file "$place/job.sh=job.sh" "$@"
