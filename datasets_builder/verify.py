# SPDX-License-Identifier: Apache-2.0
"""Check a finished build: files against the manifest, rows against what they say, sampled pairs warped again.

    python -m datasets_builder.verify out/pairs                  # 64 rows by chance; CPU, seconds
    python -m datasets_builder.verify out/pairs --all            # every row

Prints each fault with its kind and file. Exit code 0 = no fault, 1 = faults, 2 = options that cannot be followed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from datasets_builder.checks import SAMPLED_ROWS, check_build

LISTED = 50  # faults that are printed one by one


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the build")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--sample", type=int, default=SAMPLED_ROWS, metavar="N", help="rows whose pictures are checked (%(default)s)"
    )
    rows.add_argument("--all", action="store_true", help="check the pictures of every row")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides which rows (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check, and list the faults."""
    options = parse_arguments(arguments)
    if not options.folder.is_dir() or options.sample < 0:
        rule = "DIR must be a folder" if not options.folder.is_dir() else "--sample must be at least 0"
        print(f"{rule}; got {options.sample if options.folder.is_dir() else options.folder}.", file=sys.stderr)
        return 2
    faults = check_build(options.folder, None if options.all else options.sample, options.seed, progress=True)
    for fault in faults[:LISTED]:
        print(f"{fault.kind}: {fault.file}: {fault.detail}")
    if not faults:
        checked = "every row" if options.all else f"{options.sample} rows at most"
        print(f"{options.folder}: no fault found; pictures of {checked} checked.")
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).items())
    print(f"{options.folder}: {len(faults)} faults: {kinds}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
