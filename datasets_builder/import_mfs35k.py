# SPDX-License-Identifier: Apache-2.0
"""Take a folder in the layout of MfS35K into a data set of our rows: Parquet files that `load_dataset` reads.

    python -m datasets_builder.import_mfs35k MfS35K/ --list MfS35K/list.txt --output pairs
    python -m datasets_builder.import_mfs35k out/pairs/mfs35k --output out/again                (list.txt, seconds)

A command of its own, because it asks for no weights, seed or steps: it makes no pair. What the layout does not hold
(flip agreement, seed, weights) has the values that `mfs35k_rows` says. A killed run goes on with the same command;
samples that cannot be read are named in rejected.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datasets_builder.mfs35k_rows import FILE_LIST, import_layout
from datasets_builder.plan import BuildOptions


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 for options that cannot be followed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that the paths of the list are relative to")
    parser.add_argument("--list", type=Path, metavar="FILE", help=f"file list; default: ROOT/{FILE_LIST}")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the data set")
    parser.add_argument("--license", default="", help="of the photographs")
    parser.add_argument("--attribution", default="", help="whom to name")
    parser.add_argument(
        "--pairs-per-shard", type=int, default=BuildOptions.pairs_per_shard, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--keep-metadata", action="store_true", help="publish the left files as they are")
    options = parser.parse_args(arguments)
    try:
        manifest = import_layout(
            options.root,
            options.list or options.root / FILE_LIST,
            options.output,
            options.license,
            options.attribution,
            pairs_per_shard=options.pairs_per_shard,
            keep_metadata=options.keep_metadata,
        )
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    counts = manifest["counts"]
    print(f"{counts['pairs']} pairs of {counts['photos']} samples in {len(manifest['shards'])} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
