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
# Whatever is mounted below it is mounted in another name space, which is gone by then.
trap 'rm --recursive --force --one-file-system "$folder"' EXIT
root=$folder/root

make_root "$suite" "$folder" ca-certificates,make,gcc,libc6-dev

mkdir "$root/vmsrs" "$root/usr/local/rust" "$root/root/.cargo"
git ls-files -z --cached --others --exclude-standard |
	tar --create --null --files-from=- --ignore-failed-read | tar --extract --directory="$root/vmsrs"
# A proxy may have a certificate of its own.
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
for config in config config.toml; do
	cp --dereference "${CARGO_HOME:-$HOME/.cargo}/$config" "$root/root/.cargo/" 2>/dev/null || :
done

export root
rust=$(rustc --print sysroot)
export rust
unshare --mount --propagation private --pid --fork --kill-child bash -euc '
	mount --bind "$rust" "$root/usr/local/rust"
	mount --rbind /dev "$root/dev"
	mount -t proc proc "$root/proc"
	mount -t sysfs -o ro sysfs "$root/sys"
	exec chroot "$root" env --unset=CARGO_HOME --unset=RUSTUP_HOME --unset=CARGO_TARGET_DIR --unset=MAKEFLAGS \
		HOME=/root PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		make --directory=/vmsrs "$@"' bash "$@"
