# SPDX-License-Identifier: Apache-2.0
"""Publish a finished build as a data set of the Hub: verify, write its card, upload, read rows back.

    python -m datasets_builder.publish out/pairs USER/PAIRS --dry-run               # all but the upload; CPU, seconds
    python -m datasets_builder.publish out/pairs USER/PAIRS --private
    python -m datasets_builder.publish out/pairs USER/PAIRS --licence-for-all CC0-1.0

Card and pictures are written into the folder of the build; a README.md with text of your own is kept. Photographs
without a licence are refused, unless --licence-for-all says which one they have. A run that was broken off is taken up
by the same command, which sends what is missing. rejected.jsonl stays here: it tells of files that are not published.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.utils import validate_repo_id

from datasets_builder.checks import SAMPLED_ROWS, check_build
from datasets_builder.dataset_card import CARD, GENERATED, Summary, make_card, summarise
from datasets_builder.hub_upload import (
    ConflictError,
    ReadBackError,
    local_files,
    open_repository,
    read_back,
    status_of,
    upload,
)
from datasets_builder.manifest import read_manifest
from datasets_builder.plan import write_atomically

ROWS_READ_BACK = 10
LISTED = 20  # faults, or files of a dry run, that are printed one by one


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the build")
    parser.add_argument("repo", metavar="REPO", help="USER/NAME of a data set on the Hub; made if missing")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--dry-run", action="store_true", help="verify and write the card, but ask no network")
    parser.add_argument(
        "--licence-for-all", default="", metavar="NAME", help="licence of the photographs that state none"
    )
    parser.add_argument(
        "--sample", type=int, default=SAMPLED_ROWS, metavar="N", help="rows whose pictures are verified (%(default)s)"
    )
    return parser.parse_args(arguments)


def check_licences(summary: Summary, licence_for_all: str) -> None:
    """Refuse photographs without a licence.

    Raises:
        ValueError: some state none, and nobody said which one they have.
    """
    if summary.unlicensed_count and not licence_for_all:
        raise ValueError(
            f"`license` must be stated for every photograph; {summary.unlicensed_count} pairs have none, first "
            f"{', '.join(summary.unlicensed)}. If they all have the same one, say so: --licence-for-all NAME."
        )


def stated_licence(card: Path) -> Any:
    """Return the licence that a card states, or None.

    Raises:
        ValueError: its front matter is no YAML.
    """
    try:
        return DatasetCard.load(card).data.get("license")
    except yaml.YAMLError as error:
        raise ValueError(f"`{CARD}` must begin with YAML between two lines of ---; got {card}: {error}.") from error


def write_card(folder: Path, contents: dict[str, bytes]) -> bool:
    """Write card and pictures into the folder of the build; tells whether the card is a generated one.

    Raises:
        ValueError: a card of somebody's own has no licence, or no front matter that can be read.
    """
    card = folder / CARD
    own = card.is_file() and GENERATED not in card.read_text(encoding="utf-8")
    if own and not stated_licence(card):
        raise ValueError(f"`{CARD}` must state a license in its front matter; got none in {card}, your own text.")
    for name, content in contents.items():
        if not (own and name == CARD):
            write_atomically(folder / name, content)
    return not own


def prepare(options: argparse.Namespace) -> bool:
    """Verify the build and write its card; tells whether it may be published.

    Raises:
        FileNotFoundError: no such build.
        ValueError: no pair, or photographs without licence.
    """
    if not options.folder.is_dir():
        raise FileNotFoundError(f"`DIR` must be the folder of a build; got {options.folder}.")
    faults = check_build(options.folder, options.sample, progress=True)
    for fault in faults[:LISTED]:
        print(f"{fault.kind}: {fault.file}: {fault.detail}")
    if faults:
        print(f"{options.folder} is not published: {len(faults)} faults.")
        return False
    manifest = read_manifest(options.folder)
    if not manifest["counts"]["pairs"]:
        raise ValueError(f"`DIR` must hold at least one pair; got {options.folder} with none.")
    licence_for_all = options.licence_for_all.strip()
    summary = summarise(options.folder, manifest)
    check_licences(summary, licence_for_all)
    contents = make_card(options.folder, manifest, summary, options.repo, licence_for_all)
    if not write_card(options.folder, contents):
        print(f"{options.folder / CARD} is your own text and is kept.")
    return True


def run(options: argparse.Namespace, api: HfApi, **repeating: Any) -> int:
    """Publish; returns the exit code. `repeating` goes to the steps that are repeated."""
    validate_repo_id(options.repo)
    if options.repo.count("/") != 1:
        raise ValueError(f"`REPO` must be USER/NAME; got {options.repo}.")
    if not prepare(options):
        return 1
    if options.dry_run:
        names = list(local_files(options.folder))
        size = sum((options.folder / name).stat().st_size for name in names)
        more = f"\n... and {len(names) - LISTED} more" if len(names) > LISTED else ""
        print("\n".join(names[:LISTED]) + more)
        print(f"would be uploaded to {options.repo}: {len(names)} files, {size / 1e6:.1f} MB. Nothing was.")
        return 0
    remote = open_repository(api, options.repo, options.private, **repeating)
    published = upload(api, options.folder, options.repo, remote, **repeating)
    rows = read_back(options.folder, options.repo, published.commit, ROWS_READ_BACK, api.token, **repeating)
    print(f"{published.sent} files new or changed; {rows} rows read back by streaming are equal.")
    print(f"{api.endpoint}/datasets/{options.repo} at {published.commit}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 1 for faults and refusals of the Hub, 2 for options that cannot be followed."""
    options = parse_arguments(arguments)
    try:
        return run(options, HfApi())
    except Exception as error:
        if isinstance(error, (ConflictError, ReadBackError, ConnectionError)) or status_of(error) is not None:
            print(f"not published: {str(error).strip() or type(error).__name__}", file=sys.stderr)
            return 1
        if isinstance(error, (FileNotFoundError, ValueError)):
            print(error, file=sys.stderr)
            return 2
        raise


if __name__ == "__main__":
    sys.exit(main())
