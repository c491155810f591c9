#!/usr/bin/env bash
# Checks the packages that `make deb` has built in a fresh Debian below build/: with its lintian, and by tests/packages/inside.sh.
#
#   tests/packages/test.sh [SUITE]      default: this machine's
#
# It needs root. The Debian is removed in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
suite=${1:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
packages=build/deb/$suite
if [ ! -f "$packages/vmsrs.changes" ]; then
	echo "$0: there are no packages in $packages; build them by: make deb DEB_SUITE=$suite" >&2
	exit 1
fi
. tests/bed/root.sh

folder=$(mktemp --directory "$PWD/build/packages-XXXXXX")
trap 'rm --recursive --force --one-file-system "$folder"' EXIT
root=$folder/root
make_root "$suite" "$folder" ca-certificates,lintian
cp tests/packages/inside.sh "$packages"/* "$root/tmp/"
enter_root "$root" env --ignore-environment HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
	PATH=/usr/sbin:/usr/bin:/sbin:/bin bash /tmp/inside.sh
echo "$suite: the packages can be installed, used and purged"
