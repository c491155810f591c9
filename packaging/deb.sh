#!/bin/sh
# Builds the Debian packages into build/deb/SUITE, with the Rust that is in PATH. As root, installs what that needs first.
#
#   DEB_SUITE=trixie packaging/deb.sh      for that release of Debian, in a fresh root (as root); default: this machine's
set -eu
cd "$(dirname "$0")/.."

machine=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
suite=${DEB_SUITE:-$machine}
DESTINATION=$PWD/build/deb/$suite
export DESTINATION

if [ "$suite" != "$machine" ]; then
	exec packaging/deb-elsewhere.sh "$suite" "$DESTINATION"
fi

profile=pkg.vmsrs.rustup
if ! missing=$(dpkg-checkbuilddeps -P$profile 2>&1); then
	if [ "$(id -u)" != 0 ]; then
		echo "$0: $missing" >&2
		echo "$0: install it by: sudo apt-get build-dep -P $profile ./" >&2
		exit 1
	fi
	apt-get --quiet update
	apt-get --quiet --yes --no-install-recommends -P $profile build-dep ./
fi

rm -rf "$DESTINATION"
mkdir -p "$DESTINATION"
dpkg-buildpackage --build=binary --no-sign --post-clean -P$profile \
	--buildinfo-file="$DESTINATION/vmsrs.buildinfo" --buildinfo-option="-u$DESTINATION" \
	--changes-file="$DESTINATION/vmsrs.changes" --changes-option="-u$DESTINATION"
ls "$DESTINATION"/*.deb
