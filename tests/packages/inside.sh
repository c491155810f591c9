#!/usr/bin/env bash
# Runs in a fresh Debian: installs the packages in /tmp, uses them, purges them, and looks for what they left.
set -euo pipefail
packages=(vmsrs libvmsrs1 libvmsrs-dev vmsrs-dkms)

fail() {
	echo "packages: $*" >&2
	exit 1
}

apt() {
	apt-get --quiet --yes --no-install-recommends "$@" >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; fail "apt-get $*"; }
}

# All files that last, without those of apt and of packages' triggers, the key that dkms makes for the machine with the first module,
# and the copies of lists of users and groups that are made when one is added.
files() {
	find / -xdev \( -path "/etc/*shadow-" -o -path "/etc/passwd-" -o -path "/etc/group-" -o -path /tmp -o -path /run -o -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path "/var/lib/dkms/mok.*" \) -prune -o -print |
		sort
}

lintian --allow-root --fail-on error,warning /tmp/vmsrs.changes || fail 'lintian has complaints'
echo 'lintian: no errors, no warnings'

# What the packages depend on, and what the checks below use.
apt update
apt install dkms linux-headers-cloud-amd64 gcc libc6-dev pkg-config man-db bash-completion systemd udev
kernel=$(basename /usr/src/linux-headers-*-cloud-amd64)
kernel=${kernel#linux-headers-}
depmod "$kernel"
files >/tmp/before

for package in "${packages[@]}"; do
	debs+=(/tmp/"${package}"_*.deb)
done
apt install "${debs[@]}"

# The library looks into the dynamic linker, so apt must not combine it with another glibc.
glibc=$(dpkg-query --show --showformat '${Version}' libc6)
glibc=${glibc%%-*}
depends=$(dpkg-query --show --showformat '${Depends}' libvmsrs1)
[[ $depends = *"libc6 (>> $glibc), libc6 (<< ${glibc%.*}.$((${glibc##*.} + 1)))"* ]] ||
	fail "libvmsrs1 does not depend on glibc $glibc alone: $depends"

version=$(dpkg-query --show --showformat '${Version}' vmsrs)
[ "$(vmsrs --version)" = "vmsrs $version" ] || fail "the command is not of version $version"
for command in '' $(vmsrs --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/-\1/p'); do
	[ "$command" = -help ] || man --where "vmsrs$command" >/dev/null || fail "no manual page vmsrs$command"
done
bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader vmsrs || :; complete -p vmsrs' >/dev/null ||
	fail 'no completion in bash'
grep -q '^#compdef vmsrs' /usr/share/zsh/vendor-completions/_vmsrs || fail 'no completion in zsh'
grep -q '^complete -c vmsrs' /usr/share/fish/vendor_completions.d/vmsrs.fish || fail 'no completion in fish'

example=/usr/share/doc/libvmsrs-dev/examples/notes.c
for static in '' --static; do
	# shellcheck disable=SC2046
	gcc ${static:+-static} -o /tmp/notes "$example" $(pkg-config $static --cflags --libs vmsrs) 2>/tmp/gcc.log ||
		{ cat /tmp/gcc.log; fail "cannot compile with pkg-config $static"; }
	VMSRS_DEVICE=none /tmp/notes >/tmp/notes.log || fail "notes.c, compiled with pkg-config $static, does not run"
	diff /tmp/notes.log - <<-'END' || fail "notes.c, compiled with pkg-config $static, is wrong"
		failed: memory at 0x8
		ok 1
		ok 1
		ok 2
	END
done

dkms status vmsrs | grep "$kernel.*: installed" >/dev/null || { dkms status; fail "no driver for $kernel"; }
[ "$(modinfo --set-version "$kernel" --field version vmsrs)" = "$version" ] || fail "the driver is not of version $version"
refusal=$(dkms build "vmsrs/$version" -k 6.13.0-cloud-amd64 --kernelsourcedir "/lib/modules/$kernel/build" 2>&1) &&
	fail 'the driver is built for Linux 6.13'
[[ $refusal = *BUILD_EXCLUSIVE* ]] || fail "the driver is refused for another reason: $refusal"

[ "$(systemctl is-enabled vmsrs-metrics)" = disabled ] || fail 'the package enables the service of the metrics, or does not have it'
systemctl enable --quiet vmsrs@web vmsrs-incidents@web vmsrs-metrics
systemd-analyze verify --man=no vmsrs@web.service vmsrs-incidents@web.service vmsrs-metrics.service 2>&1 | grep vmsrs && fail 'a unit is wrong'
journalctl --dump-catalog | grep vmsrs >/dev/null || fail 'the journal does not have the texts'
getent passwd vmsrs >/dev/null || fail 'no user for virtual machines'
getent group vmsrs >/dev/null || fail 'no group for the device'
rules=$(dpkg --listfiles vmsrs-dkms | grep '\.rules$')
# Debian 12 has no such command.
udevadm --help | grep '^ *verify' >/dev/null && { udevadm verify --no-style "$rules" >/tmp/udev.log 2>&1 || { cat /tmp/udev.log; fail 'the rule is wrong'; }; }

# Users and groups stay, as those of all packages do: a file may be theirs.
apt purge "${packages[@]}"
files >/tmp/after
diff /tmp/before /tmp/after || fail 'files are left, or missing'
dpkg-query --list '*vmsrs*' 2>/dev/null | grep '^[a-z]' && fail 'packages are left'
exit 0
