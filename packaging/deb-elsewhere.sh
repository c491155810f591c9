#!/usr/bin/env bash
# Builds the Debian packages for another release of Debian: in a fresh root of it below build/, which is removed in the end.
#
#   packaging/deb-elsewhere.sh SUITE FOLDER      (as root)
set -euo pipefail
suite=$1 destination=$2
. tests/bed/root.sh

mkdir -p build
folder=$(mktemp --directory "$PWD/build/deb-$suite-XXXXXX")
trap 'rm --recursive --force --one-file-system "$folder"' EXIT
root=$folder/root
make_root "$suite" "$folder" ca-certificates,build-essential
add_project "$root"
enter_root "$root" env --chdir=/vmsrs DEB_SUITE="$suite" packaging/deb.sh
rm --recursive --force "$destination"
mkdir --parents "$(dirname "$destination")"
mv "$root/vmsrs/build/deb/$suite" "$destination"
ls "$destination"/*.deb
