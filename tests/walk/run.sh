#!/usr/bin/env bash
# Runs the commands that `vmsrs-walk extract` has put beside this script, each block in a shell of its own, and compares what they print.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd /root

# matches OUTPUT EXPECTED: each expected line is in the output, in this order; lines between them do not count.
matches() {
	local line pattern
	exec 3<"$1"
	while IFS= read -r line || [ -n "$line" ]; do
		[ "$line" != ... ] || continue
		# Nothing but `...` is a pattern, not even those of extglob.
		pattern=$(sed 's/[][\\*?()|!+@]/\\&/g; s/\.\.\./*/g' <<<"$line")
		while :; do
			IFS= read -r line <&3 || [ -n "$line" ] || {
				echo "walk: not printed: $pattern" >>"$1"
				return 1
			}
			# shellcheck disable=SC2053
			[[ $line != $pattern ]] || break
		done
	done <"$2"
}

output=$(mktemp)
for commands in "$here"/*.sh; do
	block=${commands%.sh}
	[ -f "$block.line" ] || continue
	line=$(cat "$block.line")
	echo "walk: $line"
	while :; do
		code=0
		bash -euo pipefail "$commands" </dev/null >"$output" 2>&1 || code=$?
		if [ $code = 0 ] && { [ ! -f "$block.expected" ] || matches "$output" "$block.expected"; }; then
			break
		fi
		if [ ! -f "$block.again" ]; then
			cat "$output"
			echo "walk: FAILED: $line (code $code)"
			exit 1
		fi
		sleep 1
	done
	cat "$output"
done
rm "$output"
