#!/usr/bin/env bash
# Runs make targets on a fresh Debian 13, a root that mmdebstrap makes below build/: what a new user does there.
#
#   tests/bed/trixie.sh [TARGET...]      default: fetch kmod demo
#
# It needs root. Rust is this machine's own, since Debian's is too old. The root is removed in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
-*)
	echo 'usage: tests/bed/trixie.sh [TARGET...]' >&2
	exit 2
	;;
esac
suite=trixie
(($#)) || set -- fetch kmod demo

. tests/bed/root.sh

mkdir -p build
folder=$(mktemp --directory "$PWD/build/trixie-XXXXXX")
trap 'rm --recursive --force --one-file-system "$folder"' EXIT
root=$folder/root

make_root "$suite" "$folder" ca-certificates,make,gcc,libc6-dev
add_project "$root"
enter_root "$root" make --directory=/vmsrs "$@"
