#!/usr/bin/env bash
# Makes the disks of a guest and of a KVM host, with the packages that `make deb` has built and the commands of docs/operating.md.
#
#   tests/walk/image.sh guest SUITE      build/guest/SUITE: disk.img, vmlinuz, initrd.img, and for `vmsrs incidents` symbols
#   tests/walk/image.sh host SUITE       build/walk/SUITE: a host with that guest, for `vmsrs-walk run`
#
# It needs root, but no loop device: mke2fs fills a disk from a folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
what=${1:-} suite=${2:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
packages=build/deb/$suite
walk=target/release/vmsrs-walk

case $what in
guest | host) ;;
*)
	echo 'usage: tests/walk/image.sh guest|host [SUITE]' >&2
	exit 2
	;;
esac
if [ ! -f "$packages/vmsrs.changes" ]; then
	echo "$0: there are no packages in $packages; build them by: make deb DEB_SUITE=$suite" >&2
	exit 1
fi
. tests/bed/root.sh
for tool in mke2fs debugfs; do
	command -v $tool >/dev/null || { apt-get --quiet update && apt-get --quiet install --yes --no-install-recommends e2fsprogs; }
done

mkdir -p build
folder=$(mktemp --directory "$PWD/build/$what-XXXXXX")
trap 'rm --recursive --force --one-file-system "$folder"' EXIT
root=$folder/root

# run PLACE: the document's commands for that place, in the root.
run() {
	mkdir "$root/walk"
	$walk extract "$1" "$root/walk"
	cp tests/walk/run.sh "$root/walk/"
	enter_root "$root" bash /walk/run.sh
	rm --recursive "$root/walk"
}

# finish NAME SIZE: what makes the root a machine of its own, and its disk.
finish() {
	echo "$1" >"$root/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$1" >"$root/etc/hosts"
	rm -f "$root/etc/resolv.conf" "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
	: >"$root/etc/machine-id"
	enter_root "$root" apt-get clean
	rm --recursive --force "$root"/var/lib/apt/lists/* "$root"/tmp/* "$root"/run/*
	cp "$root"/boot/vmlinuz-* "$folder/vmlinuz"
	cp "$root"/boot/initrd.img-* "$folder/initrd.img"
	truncate --size "$2" "$folder/disk.img"
	mke2fs -q -t ext4 -L "$1" -d "$root" "$folder/disk.img"
}

# keep FOLDER FILE...
keep() {
	local to=$1
	shift
	rm --recursive --force "$to"
	mkdir --parents "$to"
	(cd "$folder" && mv "$@" "$OLDPWD/$to/")
	echo "$to: $*"
}

# What both have; the rest comes by the document's commands.
system=ca-certificates,systemd-sysv,dbus,udev,kmod,e2fsprogs,iproute2,initramfs-tools,zstd
case $what in
guest)
	make_root "$suite" "$folder" "$system"
	cp "$packages"/*.deb tests/ledger/servers/ledger.c "$root/root/"
	run guest
	rm "$root"/root/*.deb
	finish guest 4G
	mkdir "$folder/symbols"
	cp "$root/usr/local/bin/ledger" "$root"/usr/lib/x86_64-linux-gnu/libvmsrs.so.1.0.0 "$folder/symbols/"
	keep "build/guest/$suite" disk.img vmlinuz initrd.img symbols
	;;
host)
	guest=build/guest/$suite
	if [ ! -f "$guest/disk.img" ]; then
		echo "$0: there is no disk in $guest; make it by: make guest-image DEB_SUITE=$suite" >&2
		exit 1
	fi
	make_root "$suite" "$folder" "$system,linux-image-cloud-amd64"
	cp "$packages"/*.deb "$root/root/"
	run host-packages
	rm "$root"/root/*.deb
	mkdir "$root/root/image" "$root/walk"
	cp --sparse=always --recursive "$guest"/* "$root/root/image/"
	# What the test needs in both besides, and no user does.
	cp --recursive tests/walk/host/. "$root/"
	(cd tests/walk/guest && find . -type d ! -name . -printf 'mkdir %P\n' -o -type f -printf "rm %P\nwrite $PWD/%P %P\n" \
		-o -type l -printf 'symlink %P %l\n') >"$folder/overlay"
	debugfs -w -f "$folder/overlay" "$root/root/image/disk.img" >"$folder/debugfs.log" 2>&1
	if e2fsck -fn "$root/root/image/disk.img" >"$folder/e2fsck.log" 2>&1; then :; else
		cat "$folder/debugfs.log" "$folder/e2fsck.log"
		exit 1
	fi
	$walk extract host "$root/walk"
	cp tests/walk/run.sh tests/walk/after.sh tests/walk/main.sh "$root/walk/"
	finish host 12G
	keep "build/walk/$suite" disk.img vmlinuz initrd.img
	;;
esac
