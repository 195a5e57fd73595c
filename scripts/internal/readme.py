#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""usage: readme.py [--check]

Fills in the tables of README.md from the results in Documentation/performance. Each stands between the
lines `<!-- NAME -->` and `<!-- end -->`. With --check, writes nothing, and fails if a table is out of date.
"""

import json
import pathlib
import re
import sys

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent
README = PROJECT / "README.md"
RESULTS = PROJECT / "Documentation" / "performance"

# Operation and number of regions, as the benchmark names them, and as the README does.
COSTS = [
    ("register", 1, "register one more", "1"),
    ("register", 1 << 19, "register one more", "512Ki"),
    ("hit", 1 << 19, "munmap of a watched page, added", "512Ki"),
    ("read-none", 1, "read, nothing queued", "any"),
    ("check", 1, "check that nothing happened", "any"),
]
BASELINES = [("ummunotify", "ummunotify"), ("v2", "V2"), ("kdreg2", "kdreg2"), ("userfaultfd", "userfaultfd")]


def load(name):
    with open(RESULTS / name, encoding="utf-8") as file:
        return json.load(file)


def mpi():
    yield "| unmodified MPI library | over | messages | wrong without ummunotify | wrong with it |"
    yield "|---|---|--:|--:|--:|"
    for stack in load("mpi.json"):
        library, transport = stack["versions"]
        if stack["stack"] == "intel-libfabric":
            transport += ", with its cache on"
        yield (f"| {library} | {transport} | {stack['messages']} | **{stack['wrong as it is']}** "
               f"| **{stack['wrong with ummunotify']}** |")


def costs():
    found = {(cost["operation"], cost["regions"], cost["peer"]): cost["value"]
             for name in ("figures.json", "peers.json") for cost in load(name)["costs"]}
    yield "| operation | regions | " + " | ".join(title for _, title in BASELINES) + " |"
    yield "|---|--:|" + "--:|" * len(BASELINES)
    for operation, regions, text, title in COSTS:
        values = [found.get((operation, regions, name)) for name, _ in BASELINES]
        cells = ["–" if value is None else f"{round(value):,}" for value in values]
        yield f"| {text} | {title} | " + " | ".join(cells) + " |"


def filled(text):
    for name, table in (("mpi", mpi), ("costs", costs)):
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = block.subn("\\1\n" + "\n".join(table()) + "\n\n\\2", text)
        if count != 1:
            sys.exit(f"readme.py: README.md has {count} tables named {name}")
    return text


def main():
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if before == after:
        return
    if sys.argv[1:] == ["--check"]:
        sys.exit("README.md is not up to date with Documentation/performance: run scripts/internal/readme.py")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
