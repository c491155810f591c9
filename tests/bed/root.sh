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
	mmdebstrap --variant=apt --aptopt="$folder/apt.conf" --include="$packages" \
		"$suite" "$folder/root" "${sources[@]}"
	cp --dereference /etc/resolv.conf /etc/hosts "$folder/root/etc/"
}
