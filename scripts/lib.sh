# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh disable=SC2034 # not all of them use all of it
#
# What the scripts share. Each sets `here` to its own directory and sources this file.

set -eu

umask 022
PATH=$PATH:/usr/sbin:/sbin

project=$(cd "${here:?}/.." && pwd -P)
cache=${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/ummunotify
root=$cache/root
out=$project/build

# The directory of a kernel, which scripts/setup describes.
kernel_dir() { # NAME
	[ -s "$cache/$1" ] || die "there is no kernel \"$1\" in $cache: run scripts/setup"
	echo "$cache/kernel-$(cat "$cache/$1")"
}

me=${0##*/}
say() { echo "$*" >&2; }
die() {
	say "$me: $*"
	exit 1
}

# The comment at the top of a script is its help.
usage() { sed -n '3,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$0"; }
help() {
	usage
	exit
}
misused() {
	usage >&2
	exit 2
}

seconds() { date +%s; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root, and there is no sudo: run it as root, or install sudo"
	fi
}

in_root() { "$here/in-root" "$@"; }

# Becomes a program of the build root that needs no privileges, under the root's own loader, so that
# the host needs neither the program nor its libraries. `limit` may name a command to run it with.
exec_from_root() { # PROGRAM [ARGS...]
	program=$root/usr/bin/$1
	shift
	# shellcheck disable=SC2086 # a command and its arguments
	exec ${limit-} "$root/lib64/ld-linux-x86-64.so.2" \
		--library-path "$root/usr/lib/x86_64-linux-gnu" "$program" "$@"
}

# One process at a time works on what is behind FILE. The lock goes with the shell.
lock() { # FILE WHAT
	while :; do
		mkdir -p "${1%/*}"
		exec 9>"$1"
		flock -n 9 || {
			say "$me: another process is working on $2; waiting for it"
			flock 9
		}
		# Whoever held it may have removed the file.
		locked=$(stat -L -c %i /proc/$$/fd/9) || die "/proc is needed, and not mounted"
		[ "$(stat -c %i "$1" 2>/dev/null)" != "$locked" ] || return 0
	done
}

# Runs a command whose output matters only if it fails, and says how far it is and how long it took.
# Sets `status`, rather than to return it: `set -e` would not hold in a command that is tested.
step() { # LOG TEXT SECONDS-IT-USUALLY-TAKES COMMAND...
	step_log=$1 step_text=$2 step_usual=$3 step_start=$(seconds)
	shift 3
	if [ -t 2 ]; then
		while printf '\r%s: %s of about %s s ' "$step_text" $(($(seconds) - step_start)) "$step_usual" >&2; do
			sleep 1
		done &
		ticker=$!
	else
		say "$step_text (about $step_usual s)"
	fi
	set +e
	(set -e && "$@") >"$step_log" 2>&1
	status=$?
	set -e
	stop_ticker
	[ $status != 0 ] || say "$step_text: done in $(($(seconds) - step_start)) s"
}
ticker=
stop_ticker() {
	[ -n "$ticker" ] || return 0
	kill "$ticker" 2>/dev/null || :
	wait "$ticker" 2>/dev/null || :
	ticker=
	printf '\r\033[K' >&2
}

# Removes below the cache only, and never reaches through something mounted there.
remove() { # PATH...
	for remove_path; do
		case $remove_path in "$cache" | "$cache"/?*) ;; *) die "refusing to remove $remove_path" ;; esac
		[ -e "$remove_path" ] || continue
		if cut -d ' ' -f 5 /proc/self/mountinfo | grep -qF "$(realpath "$remove_path")/"; then
			die "something is mounted below $remove_path: unmount it first"
		fi
		as_root rm -rf --one-file-system "$remove_path"
	done
}
