# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh disable=SC2154 # what scripts/setup and scripts/internal/lib.sh set
#
# The part of scripts/setup that finds out which kernels Debian offers, and chooses one.
#
# It uses this machine's apt with its own configuration and lists in $cache/apt, so it changes nothing
# outside the cache and needs no privileges.

# The suites that have kernels, beginning with the one that changes least, each with the suite that
# has its compiler.
suites() {
	case ${SUITE-} in
	"") echo trixie-backports:trixie forky:forky sid:sid ;;
	*-backports) echo "$SUITE:${SUITE%-backports}" ;;
	experimental) echo experimental:sid ;;
	*) echo "$SUITE:$SUITE" ;;
	esac
}

# The start of a mirror's line in sources.list. UMN_MIRROR may begin with options in brackets.
source_from() { # MIRROR [OPTION]
	case $1 in
	"["*) echo "deb ${1%%]*} ${2-}]${1#*]}" ;;
	*) echo "deb [signed-by=$keyring ${2-}] $1" ;;
	esac
}

# Prints the options with which this machine's apt reaches the mirror; other apts need them, too.
host_apt_options() {
	apt-config dump --format '%f "%v";%n' Acquire |
		grep -i -E '^Acquire::(.*proxy.*|check-(valid-until|date)) "[^"]' || :
	echo 'Acquire::Retries "3";'
	echo 'APT::Install-Recommends "false";'
	# apt's own user cannot read below a home directory, and does not exist in a user namespace.
	echo 'APT::Sandbox::User "root";'
}

# Downloads the package lists of some suites, and keeps them under NAME. Fails with 4 if a suite does not
# exist.
apt_lists() { # NAME SOURCE-LINE...
	apt=$cache/apt/$1
	shift
	mkdir -p "$apt/lists/partial" "$apt/archives/partial"
	: >"$apt/status"
	printf '%s\n' "$@" >"$apt/sources.list"
	{
		# Ignore the host's own configuration, in particular its hooks.
		echo 'Dir::Etc::Main "/dev/null"; Dir::Etc::Parts "/dev/null"; Dir::Etc::SourceParts "/dev/null";'
		echo 'Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";'
		echo "Dir::Etc::SourceList \"$apt/sources.list\"; Dir::State \"$apt\"; Dir::Cache \"$apt\";"
		echo "Dir::State::Lists \"$apt/lists\"; Dir::State::Status \"$apt/status\";"
		echo 'APT::Architecture "amd64"; APT::Architectures { "amd64"; };'
		echo 'Acquire::Languages "none";'
		cat "$cache/apt.conf"
	} >"$apt/conf"
	APT_CONFIG=$apt/conf apt-get --error-on=any update >"$apt/log" 2>&1 || {
		cat "$apt/log"
		! grep -q ' 404 ' "$apt/log" || return 4
		return 1
	}
}
apt_with() { # NAME PROGRAM [ARGS...]
	with=$cache/apt/$1/conf
	shift
	APT_CONFIG=$with "$@"
}

kernel_packages() { # SERIES RELEASE VERSION
	echo "linux-headers-$2=$3 linux-binary-$2=$3 linux-modules-$2=$3 linux-source-$1=$3"
}

# Prints the newest release of a series for which all packages exist, and their version.
newest_release() { # NAME SERIES
	apt_with "$1" apt-cache pkgnames "linux-headers-$2" |
		sed -n "s/^linux-headers-\($2\(\.[0-9]*\)\{0,1\}\(+deb[0-9]*\)\{0,1\}-amd64\)\$/\1/p" | sort -rV |
		while read -r release; do
			version=$(apt_with "$1" apt-cache show --no-all-versions "linux-headers-$release" | sed -n 's/^Version: //p')
			# shellcheck disable=SC2046 # several packages
			if [ "$(apt_with "$1" apt-cache show $(kernel_packages "$2" "$release" "$version") 2>/dev/null |
				grep -c "^Version: $version\$")" = 4 ]; then
				echo "$release $version"
				break
			fi
		done
}

# Prints why a kernel cannot be used; prints nothing if it can.
flaw_of() { # NAME RELEASE VERSION
	cd "$cache/apt/$1" || return
	rm -f ./*.deb
	apt_with "$1" apt-get download "linux-headers-$2=$3" >&2 || {
		echo "could not be downloaded"
		return
	}
	dpkg-deb --fsys-tarfile ./*.deb | tar -xO "./usr/src/linux-headers-$2/.config" >config
	for option in RUST MMU_NOTIFIER; do
		grep -qx "CONFIG_$option=y" config || {
			echo "has no CONFIG_$option"
			return
		}
	done
	built_with=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="rustc \([0-9.]*\).*/\1/p' config)
	have=$(apt_with "$1" apt-cache policy rustc | sed -n 's/^ *Candidate: *\([0-9.]*\).*/\1/p')
	[ "$built_with" = "$have" ] || echo "was built with rustc $built_with, and its suite has ${have:-none}"
}

# Tries to choose a kernel: writes "RELEASE VERSION SERIES SUITE NAME REASON" to $cache/choice.
choose_from() { # NAME SERIES COMPILER-SUITE WHERE REASON
	found=$(newest_release "$1" "$2")
	[ -n "$found" ] || return 1
	# shellcheck disable=SC2086 # two words
	flaw=$(flaw_of "$1" $found)
	[ -z "$flaw" ] || {
		flaws="$flaws; ${found% *} of $4 $flaw"
		return 1
	}
	echo "$found $2 $3 $1 of $4: $5" >"$cache/choice"
}

# Prints the usable series with Rust that the suites have, supported or not.
offered() {
	for suite in $(suites); do
		name=${suite%:*}
		[ -e "$cache/apt/$name/found" ] || continue
		for offered_series in $(apt_with "$name" apt-cache pkgnames linux-headers- |
			sed -n 's/^linux-headers-\([0-9]*\.[0-9]*\)[.0-9]*\(+deb[0-9]*\)\{0,1\}-amd64$/\1/p' | sort -urV); do
			offered_found=$(newest_release "$name" "$offered_series")
			# shellcheck disable=SC2086 # two words
			[ -z "$offered_found" ] || [ -n "$(flaw_of "$name" $offered_found)" ] || echo "$offered_series ($name)"
		done
	done | paste -s -d , | sed 's/,/, /g'
}

choose_kernel() {
	flaws=
	rm -f "$cache/choice" "$cache"/apt/*/found
	for series in ${SERIES:-$supported}; do
		for suite in $(suites); do
			name=${suite%:*} compiler=${suite#*:}
			if [ ! -e "$cache/apt/$name/found" ]; then
				[ ! -e "$cache/apt/$name/absent" ] || continue
				set -- "$(source_from "$mirror") $compiler main"
				[ "$name" = "$compiler" ] || set -- "$@" "$(source_from "$mirror") $name main"
				got=0
				apt_lists "$name" "$@" || got=$?
				case $got in
				0) : >"$cache/apt/$name/found" ;;
				4)
					say "$mirror_name has no $name"
					: >"$cache/apt/$name/absent"
					continue
					;;
				*) return 1 ;;
				esac
			fi
			if [ -n "${SUITE-}" ]; then
				reason="the newest ${SERIES:-series that is supported} there"
			elif [ -n "${SERIES-}" ]; then
				reason="the newest $series, in the suite that changes least"
			elif [ "$series" = "${supported%% *}" ]; then
				reason="the newest series that is supported, from the suite that changes least"
			else
				reason="no suite has a newer series that is supported"
			fi
			! choose_from "$name" "$series" "$compiler" "$name" "$reason" || return 0
		done
	done

	while read -r series suite date; do
		case " ${SERIES:-$supported} " in *" $series "*) ;; *) continue ;; esac
		say "the archive of $date, for Linux $series"
		if apt_lists archive "$(source_from "$mirror") ${suite#*:} main" \
			"$(source_from "$archive/$date" check-valid-until=no) ${suite%:*} main"; then
			! choose_from archive "$series" "${suite#*:}" "the archive of $date" \
				"$mirror_name no longer has this series" || return 0
		else
			flaws="$flaws; $archive_name could not be read"
		fi
	done <<-END
		$(grep -v '^#' "$here/internal/known-good")
	END
	can_be_had=$(offered)
	die "neither $mirror_name nor $archive_name has Linux $(echo "${SERIES:-$supported}" | sed 's/ $//; s/ / or /g') for this" \
		"(with Rust, they have: ${can_be_had:-none})$flaws"
}
