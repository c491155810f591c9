#!/usr/bin/env bash
# Checks the packages that `make deb` has built: with lintian, and in a fresh Debian below build/ by tests/packages/inside.sh.
#
#   tests/packages/test.sh [SUITE...]      default: bookworm
#
# It needs root. The Debian is removed in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
(($#)) || set -- bookworm
. tests/bed/root.sh

if ! command -v lintian >/dev/null; then
	apt-get --quiet update
	apt-get --quiet install --yes --no-install-recommends lintian
fi
lintian --allow-root --fail-on error,warning build/deb/vmsrs.changes
echo 'lintian: no errors, no warnings'

folder=
trap '[ -z "$folder" ] || rm --recursive --force --one-file-system "$folder"' EXIT
for suite; do
	folder=$(mktemp --directory "$PWD/build/packages-XXXXXX")
	make_root "$suite" "$folder" ca-certificates
	export root=$folder/root
	cp tests/packages/inside.sh build/deb/*.deb "$root/tmp/"
	# Mounts are in a name space of their own, which is gone with the command.
	unshare --mount --propagation private --pid --fork --kill-child bash -euc '
		mount --rbind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount -t sysfs -o ro sysfs "$root/sys"
		exec chroot "$root" env --ignore-environment HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			PATH=/usr/sbin:/usr/bin:/sbin:/bin bash /tmp/inside.sh'
	rm --recursive --force --one-file-system "$folder"
	echo "$suite: the packages can be installed, used and purged"
done
