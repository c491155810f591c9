# Sourced by scripts that need a fresh Debian: makes one, which takes root.

if [ "$(id -u)" != 0 ]; then
	echo "$0: only root makes and enters a Debian root; use sudo" >&2
	exit 1
fi
if ! command -v mmdebstrap >/dev/null; then
	apt-get --quiet update
	apt-get --quiet install --yes --no-install-recommends mmdebstrap
fi

# This machine's mirrors: "address release" of Debian's own suites.
mirrors() {
	LC_ALL=C apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)' 'Created-By: Packages' |
		awk -F '|' '($1 == "Debian" || $1 == "") && $2 ~ /debian/ { print $2, $3 }'
}

# make_root SUITE FOLDER PACKAGE,PACKAGE...: a Debian with these packages in FOLDER/root, with this machine's mirrors, proxies and names.
make_root() {
	local suite=$1 folder=$2 packages=$3 main security
	main=$(mirrors | awk '$2 !~ /-/ { print $1; exit }')
	security=$(mirrors | awk '$2 ~ /-security$/ { print $1; exit }')
	if [ -z "$main" ]; then
		echo "$0: apt's sources name no Debian archive" >&2
		exit 1
	fi
	# Proxies, dates and the like, as on this machine.
	apt-config dump Acquire >"$folder/apt.conf"
	local sources=("deb $main $suite main" "deb $main $suite-updates main")
	[ -z "$security" ] || sources+=("deb $security $suite-security main")
	# Nobody needs it after a power failure.
	mmdebstrap --variant=apt --aptopt="$folder/apt.conf" --dpkgopt=force-unsafe-io --include="$packages" \
		"$suite" "$folder/root" "${sources[@]}"
	cp --dereference /etc/resolv.conf /etc/hosts "$folder/root/etc/"
	# A proxy may have a certificate of its own.
	[ ! -d "$folder/root/etc/ssl/certs" ] ||
		cp --dereference /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/"
}

# add_project ROOT: this project's sources in ROOT/vmsrs, and what its build needs: this machine's Rust, which enter_root mounts, since
# Debian's is too old, and cargo's configuration.
add_project() {
	local root=$1 config
	mkdir "$root/vmsrs" "$root/usr/local/rust" "$root/root/.cargo"
	git ls-files -z --cached --others --exclude-standard |
		tar --create --null --files-from=- --ignore-failed-read | tar --extract --directory="$root/vmsrs"
	for config in config config.toml; do
		cp --dereference "${CARGO_HOME:-$HOME/.cargo}/$config" "$root/root/.cargo/" 2>/dev/null || :
	done
}

# enter_root ROOT COMMAND...: runs it in there. What is mounted is mounted in a name space of its own, which is gone with the command.
enter_root() {
	local rust=
	[ ! -d "$1/usr/local/rust" ] || rust=$(rustc --print sysroot)
	rust=$rust unshare --mount --propagation private --pid --fork --kill-child bash -euc '
		root=$1
		shift
		[ -z "$rust" ] || mount --bind "$rust" "$root/usr/local/rust"
		mount --rbind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount -t sysfs -o ro sysfs "$root/sys"
		exec chroot "$root" env --unset=rust --unset=CARGO_HOME --unset=RUSTUP_HOME --unset=CARGO_TARGET_DIR --unset=MAKEFLAGS \
			HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"' bash "$@"
}
