# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh disable=SC2034 # not all of them use all of it
#
# Functions shared by the scripts. Each sets `here` to the directory scripts/ and sources this file.

set -eu

umask 022
PATH=$PATH:/usr/sbin:/sbin

me=${0##*/}
say() { echo "$*" >&2; }
die() {
	say "$me: $*"
	exit 1
}

# Kernel builds fail in paths with blanks or colons, make or the shell in those with the others.
check_path() { # PATH WHAT
	case $1 in
	[!/]*) die "$2 is \"$1\", which does not start with a slash" ;;
	*[[:space:]:\;\&\|\<\>\(\)\*\?\[\]\{\}\`\'\"\$\#%\\]*)
		die "$2 is \"$1\": kernels cannot be built in a path with blanks, colons or the like; choose another one"
		;;
	esac
}

project=$(cd "${here:?}/.." && pwd -P)
check_path "$project" "the project's directory"
[ -n "${XDG_CACHE_HOME-}${HOME-}" ] || HOME=$(getent passwd "$(id -u)" | cut -d : -f 6)
[ -n "${XDG_CACHE_HOME-}${HOME-}" ] || die "HOME is not set: set it, or set XDG_CACHE_HOME"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ummunotify
check_path "$cache" "the cache's directory"
out=$project/build

# apt reads only the lower-case names.
: "${http_proxy:=${HTTP_PROXY-}}" "${https_proxy:=${HTTPS_PROXY-}}" "${no_proxy:=${NO_PROXY-}}"
export http_proxy https_proxy no_proxy

# --- the contents of the cache, which scripts/setup describes -----------------------------------

# The kernel that was requested. The cache keeps others than the newest one under separate names.
variant=${SERIES:+-$SERIES}${SUITE:+-$SUITE}

release() { # KERNEL
	[ -s "$cache/$1$variant" ] ||
		die "there is no kernel \"$1$variant\" in $cache: run ${SERIES:+SERIES=$SERIES }${SUITE:+SUITE=$SUITE }scripts/setup"
	cat "$cache/$1$variant"
}
kernel_dir() { # KERNEL
	kernel_release=$(release "$1")
	echo "$cache/kernel-$kernel_release"
}

# Each suite has its own compiler, and thus its own build root.
root_of() { # SUITE
	case $1 in
	trixie) echo "$cache/root" ;;
	*) echo "$cache/root-$1" ;;
	esac
}
# The stamp of a kernel contains its series and the suite of its compiler. While scripts/setup builds
# a kernel, there is no stamp yet, so it exports UMN_ROOT_SUITE.
stamp_of() { cat "$cache/kernel-$(cat "$cache/$1$variant")/stamp"; } 2>/dev/null # KERNEL
find_root() {
	root_suite=${UMN_ROOT_SUITE:-$(stamp_of stock | sed -n '1s/^[^ ]* \([^ ]*\) .*/\1/p')}
	: "${root_suite:=trixie}"
	root=$(root_of "$root_suite")
}
find_root

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

# --- processes, and how they end ---------------------------------------------------------------

# Runs a command so that signals are handled at once: a shell handles them while it waits for a
# background process, but not while it runs one in the foreground.
attend() { # COMMAND...
	# Only this shell may hold the lock of contained().
	{ (exec <&3 3<&- 8>&-; "$@") & } 3<&0
	job=$!
	attended=0
	wait $job || attended=$?
	job=
	return $attended
}
job='' ticker=''

descendants() { # PID
	for children_of in "/proc/$1/task"/*/children; do
		children=
		{ read -r children <"$children_of"; } 2>/dev/null || :
		for child in $children; do
			echo "$child"
			descendants "$child"
		done
	done
}
# Ends processes and everything they have started, after giving them a moment to clean up.
end() { # PID...
	doomed=
	for process; do
		doomed="$doomed $process $(descendants "$process")"
	done
	# shellcheck disable=SC2086 # several processes
	kill -TERM $doomed 2>/dev/null || :
	sleep 0.2
	# shellcheck disable=SC2086
	kill -STOP $doomed 2>/dev/null || :
	for process in $doomed; do
		# shellcheck disable=SC2046
		kill -KILL $(descendants "$process") "$process" 2>/dev/null || :
	done
}
tidy_up() {
	stop_ticker
	rm -f "$cache/alive.$$".*
}
ended_by_signal() { # STATUS
	trap '' HUP INT TERM
	# shellcheck disable=SC2086 # one process or several
	[ -z "$job" ] || end $job
	exit "$1"
}
trap 'ended_by_signal 129' HUP
trap 'ended_by_signal 130' INT
trap 'ended_by_signal 143' TERM
trap tidy_up EXIT

# --- root, or a substitute ---------------------------------------------------------------------

# Whether this user may be root in a user namespace.
user_namespaces() { unshare --user --map-root-user --mount --pid --fork true 2>/dev/null; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root, and there is no sudo: run it as root, or install sudo or uidmap"
	fi
}

# Runs a command as root, or as root of a user namespace, with its own mounts and processes. These are
# gone as soon as the caller has ended, even if it was killed: the caller holds a lock, and the first
# process in the namespace ends when it gets the lock.
contained() { # --user|--users|--root COMMAND...
	case $1 in
	--user) how="unshare --user --map-root-user" ;;
	--users) how="unshare --user --map-root-user --map-auto" ;;
	--root) how="as_root unshare" ;;
	esac
	shift
	alive=$(mktemp "$cache/alive.$$.XXXXXX")
	exec 8>"$alive"
	flock 8
	# shellcheck disable=SC2016 # expanded by the inner shell
	set -- --mount --pid --fork --kill-child sh -c '
		alive=$1
		shift
		{ "$@" <&3 3<&- & } 3<&0
		command=$!
		trap "exit 143" TERM
		{
			flock "$alive" true
			rm -f "$alive"
			kill -TERM 1
		} </dev/null >/dev/null 2>&1 &
		wait $command
	' contained "$alive" "$@"
	contained=0
	# shellcheck disable=SC2086 # a command and its arguments
	attend $how "$@" || contained=$?
	rm -f "$alive"
	return $contained
}

in_root() { attend "$here/in-root" "$@"; }

# Executes a program of the build root that needs no privileges, with the root's own loader, so that
# the host needs neither the program nor its libraries. `limit` may name a command to run it with.
exec_from_root() { # PROGRAM [ARGS...]
	program=$root/usr/bin/$1
	shift
	# shellcheck disable=SC2086 # a command and its arguments
	exec ${limit-} "$root/lib64/ld-linux-x86-64.so.2" \
		--library-path "$root/usr/lib/x86_64-linux-gnu" "$program" "$@"
}

# Prints a cpio archive of what is in a directory, for the guest, where root owns it.
pack() { # DIRECTORY
	(cd "$1" && find . ! -name . | exec_from_root cpio --quiet -o -H newc -R +0:+0)
}

# Splits arguments at --: `options` are those before it, and `split` is how many to shift. Without --,
# there are no options.
split_options() { # ARGS...
	options='' split=0
	case " $* " in
	*" -- "*) ;;
	*) return 0 ;;
	esac
	for argument; do
		split=$((split + 1))
		[ "$argument" != -- ] || return 0
		options="$options $argument"
	done
}

# Lets one process at a time work on what FILE protects. The lock is released with the shell.
lock() { # FILE WHAT
	while :; do
		mkdir -p "${1%/*}"
		exec 9>"$1"
		flock -n 9 || {
			say "$me: another process is working on $2; waiting for it"
			attend flock 9
		}
		# The previous holder may have removed the file.
		locked=$(stat -L -c %i /proc/$$/fd/9) || die "/proc is not mounted"
		[ "$(stat -c %i "$1" 2>/dev/null)" != "$locked" ] || return 0
	done
}

# --- long steps --------------------------------------------------------------------------------

# Runs a command whose output matters only if it fails; shows its progress and the time it took.
# Sets `status` instead of returning it: `set -e` has no effect in a command whose status is tested.
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
	(set -e && "$@") >"$step_log" 2>&1 &
	job=$!
	status=0
	wait $job || status=$?
	job=
	stop_ticker
	[ $status != 0 ] || say "$step_text: done in $(($(seconds) - step_start)) s"
}
stop_ticker() {
	[ -n "$ticker" ] || return 0
	# shellcheck disable=SC2046 # several processes
	kill $ticker $(descendants $ticker) 2>/dev/null || :
	wait "$ticker" 2>/dev/null || :
	ticker=
	printf '\r\033[K' >&2
}

# Builds something on behalf of another script.
build() { # WHAT SECONDS
	step "$out/build-$1.log" "building $1" "$2" "$here/build" "$1"
	[ "$status" = 0 ] || {
		cat "$out/build-$1.log" >&2
		exit 1
	}
}

# Removes files, only below the cache and never across a mount.
remove() { # PATH...
	for remove_path; do
		case $remove_path in "$cache" | "$cache"/?*) ;; *) die "refusing to remove $remove_path" ;; esac
		[ -e "$remove_path" ] || continue
		if cut -d ' ' -f 5 /proc/self/mountinfo | grep -qF "$(realpath "$remove_path")/"; then
			die "something is mounted below $remove_path: unmount it first"
		fi
		rm -rf --one-file-system "$remove_path" 2>/dev/null ||
			as_root rm -rf --one-file-system "$remove_path"
	done
}
