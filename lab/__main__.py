"""python -m lab: run cases of the lab, and write the table of their results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.packages import LabError, default_cache
from lab.run import judge_case, known_cases, run_case, table

EXAMPLES = """examples:
  python -m lab --list
  python -m lab x86-plain
  python -m lab --table docs/lab-results.md
"""


def main() -> int:
    """Exit status: 0 every row holds, 1 one does not, 2 bad usage."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Boot a host with KVM and its guests in an emulated machine, record them, and hold what "
        "Counterpoint says against what is known to be true. Exit status: 0 every row holds, 1 one does not, 2 no run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="a case's name; x86 or arm64: all of that architecture"
    )
    parser.add_argument("--list", action="store_true", help="the cases")
    parser.add_argument("--judge", action="store_true", help="judge again what the cases' last runs brought home")
    parser.add_argument("--keep", action="store_true", help="keep the folder shared with the machine, too")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR", help="packages and images (%(default)s)"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="a folder a case (CACHE/results)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write all results that there are as Markdown")
    given = parser.parse_args()
    cache = given.cache.resolve()
    results = (given.results or cache / "results").resolve()
    known = known_cases()
    if given.list:
        width = max(map(len, known))
        for name, case in sorted(known.items()):
            print(f"{name:{width}}  {case.about}")
    wanted = [
        name
        for word in given.cases
        for name in sorted(known)
        if name == word or (word in KINDS and name.startswith(f"{word}-"))
    ]
    if unknown := [word for word in given.cases if word not in known and word not in KINDS]:
        print(f"python -m lab: there is no case {unknown[0]}; --list shows them", file=sys.stderr)
        return 2
    if not (wanted or given.list or given.table):
        parser.print_usage(sys.stderr)
        return 2
    rows = []
    for name in dict.fromkeys(wanted):
        if given.judge:
            rows += judge_case(known[name], cache, results)
        else:
            rows += run_case(known[name], cache, results, given.keep)
    if given.table:
        given.table.write_text(table(results))
    return 0 if all(row.ok for row in rows) else 1


KINDS = ("x86", "arm64")

if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"python -m lab: {error}", file=sys.stderr)
        sys.exit(2)
