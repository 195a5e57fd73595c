# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# The part of scripts/setup that downloads MPI for the guest of `make mpi`. Each stack has a directory
# in the cache, with headers and an archive for scripts/vm:
#
#   mpi/debian/    Debian's Open MPI, libfabric and UCX, soft-RoCE for the stock kernel, and the
#                  libraries of the build root that all stacks need
#   mpi/headers/   the headers of that libfabric, for tests without MPI
#   mpi/ucx/       UCX 1.13, from the previous release of Debian, with its headers
#   mpi/mpich/     MPICH from PyPI, which brings its own libfabric and UCX
#   mpi/intel/     Intel MPI from PyPI, under its own licence; only if requested
#
#   .../stamp        what it was made from
#   .../include/     mpi.h and the like
#   .../guest/       the contents of the archive, to link with
#   .../guest.cpio

# Without the dependencies that are for accelerators and remote shells, which the guest does not have.
mpi_packages="openmpi-bin openmpi-common libopenmpi40 libopenmpi-dev libpmix2t64 libhwloc15
	libevent-core-2.1-7t64 libevent-pthreads-2.1-7t64 libmunge2 libfabric1 libfabric-bin libpsm2-2
	libucx0 ucx-utils libibverbs1 librdmacm1t64 ibverbs-providers libnuma1 libnl-3-200
	libnl-route-3-200 iproute2 libmnl0"
mpi_modules="brd ext4 dummy rdma_rxe ib_uverbs rdma_ucm"
triplet=x86_64-linux-gnu

mpi_debian_made_from() { echo "$(cat "$(kernel_dir stock)/stamp")" $mpi_packages $mpi_modules; }
mpi_headers_made_from() { mpi_debian_made_from; }
mpi_ucx_made_from() { echo bookworm libucx0 libucx-dev; }
mpi_mpich_made_from() { echo mpich; }
mpi_intel_made_from() { echo impi-rt; }

mpi_is_complete() { # STACK
	[ -s "$cache/mpi/$1/guest.cpio" ] && [ "$(cat "$cache/mpi/$1/stamp")" = "$("mpi_$1_made_from")" ]
}

mpi_begin() { # STACK
	remove "$cache/mpi/$1" "$cache/mpi/$1".new.*
	new=$cache/mpi/$1.new.$$
	mkdir -p "$new/guest"
	cd "$new"
}

mpi_finish() { # STACK
	pack guest >guest.cpio
	"mpi_$1_made_from" >stamp
	mv "$new" "$cache/mpi/$1"
}

make_mpi_debian() {
	mpi_begin debian
	apt_lists mpi "$(source_from "$mirror") $root_suite main"
	mkdir debs
	# shellcheck disable=SC2086 # several packages
	(cd debs && apt_with mpi apt-get download $mpi_packages python3-pip-whl)
	mkdir all
	for deb in debs/*.deb; do
		in_root dpkg -x "$deb" all
	done
	mv all/usr/lib/$triplet/openmpi/include .
	mv all/usr/share/python-wheels/pip-*.whl pip.whl
	rm -rf all/usr/share/doc all/usr/share/man all/usr/share/python-wheels all/usr/lib/$triplet/fortran
	# The guest's own programs are in /bin and /sbin.
	mkdir -p guest/etc guest/lib64 guest/var/tmp
	mv all/etc/* guest/etc/
	mv all/usr guest/
	rm -rf all debs

	find guest -type f \( -name '*.so*' -o -path '*bin/*' \) >elf
	# shellcheck disable=SC2046 # several files
	in_root env LD_LIBRARY_PATH="$new/guest/usr/lib/$triplet" ldd $(cat elf) 2>/dev/null |
		sed -n 's,.* => \(/[^ ]*\) (0x.*,\1,p' | sort -u >libraries || :
	while read -r library; do
		[ ! -e "$root$library" ] || cp -n "$root$library" "guest/usr/lib/$triplet/"
	done <libraries
	cp "$root/lib64/ld-linux-x86-64.so.2" guest/lib64/
	# Programs built with an older C library still need these.
	for library in libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1; do
		cp "$root/usr/lib/$triplet/$library" "guest/usr/lib/$triplet/"
	done
	rm elf libraries
	echo root:x:0:0:root:/root:/bin/sh >guest/etc/passwd
	echo root:x:0: >guest/etc/group
	echo 127.0.0.1 localhost guest >guest/etc/hosts
	echo hosts: files >guest/etc/nsswitch.conf

	release=$(release stock)
	modules=$new/guest/lib/modules/$release
	mkdir -p "$modules/extra"
	cd "$(kernel_dir stock)"
	for module in $mpi_modules; do
		add_module "$module"
	done
	in_root depmod -b "$new/guest" "$release"
	echo "extra/ummunotify.ko:" >>"$modules/modules.dep"
	cd "$new"
	for file in include/mpi.h guest/usr/bin/mpirun.openmpi guest/usr/lib/$triplet/libmpi.so.40 \
		guest/usr/lib/$triplet/libfabric.so.1 guest/usr/lib/$triplet/libucp.so.0 \
		guest/usr/lib/$triplet/libibverbs.so.1; do
		[ -e "$file" ] || die "Debian's MPI packages have no ${file#guest}"
	done
	mpi_finish debian
}

make_mpi_headers() {
	mpi_begin headers
	mkdir debs
	apt_lists mpi "$(source_from "$mirror") $root_suite main"
	(cd debs && apt_with mpi apt-get download libfabric-dev libibverbs-dev)
	for deb in debs/*.deb; do
		in_root dpkg -x "$deb" all
	done
	mv all/usr/include .
	rm -rf all debs
	mpi_finish headers
}

make_mpi_ucx() {
	mpi_begin ucx
	mkdir debs
	apt_lists mpi-ucx "$(source_from "$mirror") bookworm main"
	(cd debs && apt_with mpi-ucx apt-get download libucx0 libucx-dev)
	for deb in debs/*.deb; do
		in_root dpkg -x "$deb" all
	done
	mv all/usr/include .
	mkdir -p guest/opt/ucx-1.13/lib
	# UCX looks for its modules in a directory beside its libraries.
	mv all/usr/lib/$triplet/libuc*.so.* all/usr/lib/$triplet/ucx guest/opt/ucx-1.13/lib/
	rm guest/opt/ucx-1.13/lib/ucx/*.a
	grep -q 'UCP_API_MINOR *13$' include/ucp/api/ucp_version.h || die "Debian's UCX is not 1.13"
	rm -rf all debs
	mpi_finish ucx
}

# Installs a wheel with pip, and moves its files to ./data.
mpi_wheel() { # PACKAGE
	in_root env ${PIP_INDEX_URL+PIP_INDEX_URL="$PIP_INDEX_URL"} python3 "$cache/mpi/debian/pip.whl/pip" --no-cache-dir \
		--disable-pip-version-check --retries 1 --timeout 20 install --quiet --no-deps --no-compile \
		--ignore-installed --no-warn-script-location --root-user-action=ignore --prefix "$new/wheel" "$1"
	mv wheel/local data 2>/dev/null || mv wheel data
	rm -rf wheel
}

make_mpi_mpich() {
	mpi_begin mpich
	mpi_wheel mpich
	mv data/include .
	mkdir guest/opt
	rm -rf data/lib/python*
	mv data guest/opt/mpich
	[ -x guest/opt/mpich/bin/mpiexec.hydra ] && [ -e guest/opt/mpich/lib/libmpi.so.12 ] ||
		die "PyPI's mpich is not as expected"
	mpi_finish mpich
}

make_mpi_intel() {
	mpi_begin intel
	mpi_wheel impi-rt
	mkdir -p guest/opt/intel/bin guest/opt/intel/lib
	for program in mpiexec.hydra hydra_pmi_proxy hydra_bstrap_proxy; do
		mv "data/bin/$program" guest/opt/intel/bin/
	done
	mv data/lib/libmpi.so.12 guest/opt/intel/lib/
	[ ! -d data/opt ] || mv data/opt guest/opt/intel/
	rm -rf data
	mpi_finish intel
}
