#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""usage: mpi-table.py [--save FILE] < RESULTS

Prints the output of scripts/internal/mpi-guest as a table. With --save, also writes the totals to FILE, as
JSON; stacks that are in FILE and did not run stay there. The exit status is 0 if every stack had wrong
messages without ummunotify and none with it, and a run in which no page changed registered nothing. A stack
is only judged by what was run.
"""

import collections
import json
import re
import sys

NAMES = {
    "openmpi-libfabric": "Open MPI, libfabric",
    "openmpi-ucx": "Open MPI, UCX",
    "mpich-libfabric": "MPICH, libfabric",
    "intel-libfabric": "Intel MPI, libfabric",
}
LABEL, CELL = 36, 11


class Run:
    """The output of one run of mpi-test."""

    def __init__(self):
        self.versions = []
        self.values = {}
        self.failed = None
        self.sides = collections.Counter()
        self.after = collections.OrderedDict()

    def take(self, line):
        words = line.split()
        if words[0] == "version":
            self.versions.append(" ".join(words[1:]))
        elif words[0] == "failed":
            self.failed = words[1]
        elif words[0] in ("sender", "receiver"):
            side, wrong, of, change = re.match(r"(\w+) (\d+) of (\d+) after (.*)", line).groups()
            was = self.after.get(change, (0, 0))
            self.after[change] = was[0] + int(wrong), was[1] + int(of)
            self.sides[side] += int(wrong)
        elif len(words) == 2:
            self.values[words[0]] = int(words[1])

    def value(self, name):
        if self.failed:
            return "failed"
        return str(self.values.get(name, "-"))


def read(lines):
    runs, run = collections.OrderedDict(), None
    for line in lines:
        words = line.split()
        if not words:
            continue
        if words[0] == "run":
            run = runs.setdefault(words[1], {}).setdefault(words[2], Run())
        elif run:
            run.take(line.strip())
    return runs


def row(label, cells):
    print(label.ljust(LABEL) + "".join(str(cell).rjust(CELL) for cell in cells))


def heading(texts):
    print(" " * LABEL + "".join(text.rjust(2 * CELL) for text in texts))


def show(runs):
    pairs = [(stack, ways.get("as-is"), ways.get("with")) for stack, ways in runs.items()]
    any_run = [next(iter(ways.values())) for ways in runs.values()]
    for line in (0, 1):
        heading([(run.versions + ["", ""])[line] for run in any_run])
    row("ummunotify", ["without", "with"] * len(pairs))

    def cells(what):
        return [what(run) if run else "-" for _, as_is, with_it in pairs for run in (as_is, with_it)]

    row("messages", cells(lambda run: run.value("messages")))
    row("WRONG MESSAGES", cells(lambda run: run.value("wrong")))
    row("  sent from other pages", cells(lambda run: run.sides["sender"]))
    row("  received into other pages", cells(lambda run: run.sides["receiver"]))
    row("memory registrations", cells(lambda run: run.value("registrations")))
    changes = list(collections.OrderedDict.fromkeys(
        change for _, *both in pairs for run in both if run for change in run.after))
    if changes:
        print("wrong after")
    for change in changes:
        row("  " + change, cells(lambda run: "%d of %d" % run.after.get(change, (0, 0))))
    show_ours(runs, "threads", "if four threads of each rank send at the same time (MPI_THREAD_MULTIPLE)",
              (("messages", "messages"), ("wrong", "WRONG MESSAGES")))
    show_ours(runs, "quiet", "if no page changes, but NUMA balancing and a fork per 100 messages change page tables",
              (("messages", "messages"), ("registrations", "memory registrations"),
               ("numa-pages", "page table entries balanced")))
    print()


def show_ours(runs, way, title, rows):
    ours = [ways.get(way) for ways in runs.values()]
    if any(ours):
        print(title)
        for name, label in rows:
            row("  " + label, [cell for run in ours for cell in ("", run.value(name) if run else "-")])


def judge(runs):
    worst = 0
    for stack, ways in runs.items():
        name = NAMES.get(stack, stack)
        as_is, with_it = ways.get("as-is"), ways.get("with")
        if any(run and run.failed for run in ways.values()):
            print(f"{name}: FAILED, see above", file=sys.stderr)
            worst = 1
            continue
        if any(run and run.values["wrong"] for run in (with_it, ways.get("threads"))):
            print(f"{name}: FAILED: messages were wrong although ummunotify was used", file=sys.stderr)
            worst = 1
        if as_is and not as_is.values["wrong"]:
            print(f"{name}: FAILED: no message was wrong without ummunotify, so nothing was shown",
                  file=sys.stderr)
            worst = 1
        quiet = ways.get("quiet")
        if quiet and (quiet.values["wrong"] or quiet.values.get("registrations") != 0):
            print(f"{name}: FAILED: memory was registered again though no page of it changed",
                  file=sys.stderr)
            worst = 1
        if quiet and not quiet.values["numa-pages"]:
            print(f"{name}: FAILED: NUMA balancing did nothing, so nothing was shown", file=sys.stderr)
            worst = 1
    return worst


def save(runs, path):
    with open(path, encoding="utf-8") as file:
        stacks = {stack["stack"]: stack for stack in json.load(file)}
    for name, ways in runs.items():
        stack = stacks.setdefault(name, {"stack": name})
        if "as-is" in ways and "with" in ways:
            stack["versions"] = ways["as-is"].versions
            stack["messages"] = ways["as-is"].values["messages"]
            stack["wrong as it is"] = ways["as-is"].values["wrong"]
            stack["wrong with ummunotify"] = ways["with"].values["wrong"]
        if "quiet" in ways:
            stack["quiet messages"] = ways["quiet"].values["messages"]
            stack["registrations in those"] = ways["quiet"].values["registrations"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(list(stacks.values()), file, indent=2)
        file.write("\n")


def main():
    saved = sys.argv[2] if sys.argv[1:2] == ["--save"] else None
    runs = read(sys.stdin)
    if not runs:
        sys.exit("mpi-table.py: there are no results")
    show(runs)
    status = judge(runs)
    if saved and not status:
        save(runs, saved)
    if not status:
        lost = sum(ways["as-is"].values["wrong"] for ways in runs.values() if "as-is" in ways)
        sent = sum(ways["as-is"].values["messages"] for ways in runs.values() if "as-is" in ways)
        if sent:
            print(f"Without ummunotify, {lost} of {sent} messages arrived with wrong bytes, and no call failed.")
            print("With it, none did. No program or MPI library was changed.")
    sys.exit(status)


if __name__ == "__main__":
    main()
