#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Creates the root folder of a small guest: busybox, kernel modules, vmsrs.ko, and one program.
#
#   make-guest.sh FOLDER PROGRAM VMSRS.KO [KERNEL-RELEASE [ROOT]]
#
# PROGRAM must be linked statically. The kernel package must be installed, on this machine or below
# ROOT. KERNEL-RELEASE defaults to that of the running kernel.
set -eu
if [ $# -lt 3 ]; then
	echo 'usage: make-guest.sh FOLDER PROGRAM VMSRS.KO [KERNEL-RELEASE [ROOT]]' >&2
	exit 2
fi
need() {
	if ! command -v "$1" >/dev/null; then
		echo "make-guest.sh: there is no $1: install the package $2" >&2
		exit 1
	fi
}
need busybox busybox-static
# Not on every user's path.
PATH=$PATH:/usr/sbin:/sbin
need modprobe kmod
folder=$1 program=$2 driver=$3 release=${4:-$(uname -r)} root=${5:-}

mkdir -p "$folder/bin" "$folder/lib/modules" "$folder/proc" "$folder/sys" "$folder/dev" "$folder/tmp"
cp "$(command -v busybox)" "$folder/bin/busybox"
cp "$program" "$folder/bin/server"
# modprobe prints `insmod FILE`, dependencies first, or `builtin NAME`, which needs no file.
: > "$folder/lib/modules/needed"
for module in virtio_mmio virtio_net; do
	found=$(modprobe -d "$root/" -S "$release" --show-depends "$module") || found=
	if [ -z "$found" ]; then
		echo "make-guest.sh: no module $module for $release: install its linux-image package" >&2
		exit 1
	fi
	echo "$found" >> "$folder/lib/modules/needed"
done
: > "$folder/lib/modules/order"
while read -r verb file _; do
	[ "$verb" = insmod ] || continue
	name=$(basename "$file" .xz)
	! grep -qx "$name" "$folder/lib/modules/order" || continue
	case $file in
	*.xz) xz -dc "$file" > "$folder/lib/modules/$name" ;;
	*) cp "$file" "$folder/lib/modules/$name" ;;
	esac
	echo "$name" >> "$folder/lib/modules/order"
done < "$folder/lib/modules/needed"
cp "$driver" "$folder/lib/modules/vmsrs.ko"
echo vmsrs.ko >> "$folder/lib/modules/order"

cat > "$folder/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /lib/modules/order); do
	insmod "/lib/modules/$module"
done
ip link set lo up
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
cd /tmp
server 7000
poweroff -f
INIT
chmod 755 "$folder/init"
