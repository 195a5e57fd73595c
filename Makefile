# SPDX-License-Identifier: GPL-2.0
#
# Targets for use outside a kernel tree. Kernel builds read Kbuild and Kconfig.

KDIR ?= /lib/modules/$(shell uname -r)/build
# The directory in which the module is built.
MO ?= $(CURDIR)/build/module

kbuild = $(MAKE) -C "$(KDIR)" M="$(CURDIR)" MO="$(abspath $(MO))"

modules modules_install: | kdir
	@mkdir -p "$(MO)"
	+@$(kbuild) $@

kdir:
	@[ -e "$(KDIR)/Makefile" ] && [ -e "$(KDIR)/include/config/auto.conf" ] || { echo "$(KDIR) is not a kernel build directory:" \
		"name one with 'make KDIR=/path/to/built/linux', or use 'make run', which creates one" >&2; exit 1; }

run:
	@scripts/run

check:
	@scripts/check

quick:
	@scripts/check --quick

bench:
	@scripts/bench

mpi:
	@scripts/mpi --quiet 300$(if $(INTEL), --intel)

clients:
	@scripts/setup
	@scripts/build clients
	@scripts/build umn-test

install-clients:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" LIBDIR="$(LIBDIR)" scripts/install-clients

rust-analyzer:
	@scripts/setup
	@scripts/build rust-analyzer

clean:
	rm -rf build

update:
	@scripts/setup --update

distclean: clean
	@scripts/setup --remove

help:
	@echo "make run              boot a stock Debian kernel in QEMU, load the module, run the demonstration"
	@echo "make mpi              run MPI over RDMA without and with ummunotify (INTEL=1: Intel MPI, too)"
	@echo "make check            run all tests and checks"
	@echo "make quick            run a selection that takes less than two minutes, for use while editing"
	@echo "make bench            count the instructions of each operation; fail if there are more than before"
	@echo "make rust-analyzer    write rust-project.json, for editors"
	@echo "make [modules]        build ummunotify.ko for the kernel in KDIR"
	@echo "make modules_install  install it for that kernel"
	@echo "make clients          build the libraries that make MPI use the device"
	@echo "make install-clients  install them (DESTDIR, PREFIX, LIBDIR)"
	@echo "make update           look for a newer Debian kernel to use"
	@echo "make clean            remove the build directory (build/)"
	@echo "make distclean        also remove the cache (~/.cache/ummunotify)"
	@echo
	@echo "KDIR    a built kernel tree with Rust ($(KDIR))"
	@echo "MO      the directory in which the module is built ($(MO))"
	@echo "SERIES  the kernel series to use instead of the newest, as in 'SERIES=7.2 make run'"
	@echo "SUITE   the Debian suite to take the kernel from"
	@echo
	@echo "series  architecture  Debian suite (compiler)                        tested by 'make check'"
	@echo "7.3     x86-64        trixie-backports (1.85), experimental (1.97)   with the first: all"
	@echo "7.2     x86-64        trixie-backports (1.85), forky, sid (1.97)     with the first: build, v2_, gap_, cause_"

.PHONY: modules modules_install kdir run check quick bench mpi clients install-clients rust-analyzer update clean distclean help
