# SPDX-License-Identifier: Apache-2.0
"""Publish what this project makes on the Hugging Face Hub: a command for each, and nothing goes up without --push.

    python -m training.publish pipeline runs/zerostereo USER/ZEROSTEREO              # says what would be uploaded
    python -m training.publish pipeline runs/zerostereo USER/ZEROSTEREO --results out/quality.json --push
    python -m training.publish lora runs/lora/lora USER/ZEROSTEREO-LORA --base USER/ZEROSTEREO --push
    python -m training.publish stereo-network runs/raft USER/RAFT --licence mit --data-set USER/PAIRS --push
    python -m training.publish space space USER/PAGE --weights USER/ZEROSTEREO --push
    python -m training.publish collection USER "Stereo from photographs" --models USER/ZEROSTEREO USER/RAFT \
        --data-sets USER/PAIRS --spaces USER/PAGE --push

A data set of pairs has a command of its own, datasets_builder.publish. Without --push, no network is asked: the files
are checked and listed with their sizes, and what the card of the repository says beyond that of the folder. --results
are JSON files of benchmarks or of training.evaluate_stereo; they are refused unless they belong to these very weights.
The same command again sends what is missing. CPU, seconds, beside the upload.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from training.eval_results import results_of
from training.publishing import (
    Item,
    Upload,
    check_collection,
    lora_upload,
    network_upload,
    pipeline_upload,
    push,
    push_collection,
    space_upload,
)
from training.publishing_card import CardAdditions

MESSAGES = {
    "pipeline": "A pipeline of ZeroStereo",
    "lora": "A LoRA of ZeroStereo's inpainting UNet",
    "stereo-network": "A stereo network",
    "space": "The page of ZeroStereo",
}
NOTHING_WAS_SENT = "Nothing was uploaded: add --push to do it."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    pipeline = _add_model(kinds, "pipeline", "folder of training.export_pipeline or training.train_inpainting")
    lora = _add_model(kinds, "lora", "LoRA of training.train_inpainting")
    lora.add_argument("--base", metavar="REPO", help="pipeline that it goes onto; default: the one on its card")
    network = _add_model(kinds, "stereo-network", "folder that save_pretrained wrote")
    network.add_argument("--trained-with", default="", metavar="COMMAND", help="for the card, where there is none yet")
    for model in (pipeline, lora):
        model.add_argument(
            "--i-have-permission", action="store_true", help="weights whose licence their authors do not state, too"
        )
    space = kinds.add_parser("space", help="the web page", allow_abbrev=False)
    space.add_argument("folder", type=Path, metavar="DIR", nargs="?", default=Path("space"), help="(%(default)s)")
    space.add_argument("repo", metavar="REPO", help="USER/NAME")
    space.add_argument("--weights", metavar="ID_OR_FOLDER", help="pipeline that it runs; a folder is uploaded with it")
    collection = kinds.add_parser("collection", help="a list of what was published", allow_abbrev=False)
    collection.add_argument("owner", metavar="OWNER", help="user or organisation")
    collection.add_argument("title", metavar="TITLE", help="an existing one of this title is added to")
    collection.add_argument("--description", default="", metavar="TEXT", help="at most 150 characters")
    for flag, kind in (
        ("--models", "model"),
        ("--data-sets", "dataset"),
        ("--spaces", "space"),
        ("--papers", "paper"),
    ):
        collection.add_argument(
            flag, nargs="+", default=[], type=lambda one, kind=kind: Item(kind, one), metavar="ID", help=f"{kind}s"
        )
    for command in (pipeline, lora, network, space, collection):
        command.add_argument("--push", action="store_true", help="upload; without it, only say what would be uploaded")
        command.add_argument("--private", action="store_true", help="make it private")
    return parser.parse_args(arguments)


def _add_model(kinds: argparse._SubParsersAction, name: str, what: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=what, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help=what)
    parser.add_argument("repo", metavar="REPO", help="USER/NAME of a model on the Hub; made if missing")
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="JSON", help="figures of these weights")
    parser.add_argument("--data-set", action="append", default=[], metavar="REPO", help="that it was trained on")
    parser.add_argument("--licence", metavar="NAME", help="the Hub's identifier, for a card that states none")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of benchmarks.contact_sheet, for the card")
    return parser


def prepare(options: argparse.Namespace) -> Upload:
    """Return what would be uploaded; every error comes before any request.

    Raises:
        FileNotFoundError, ValueError: as said by the functions of publishing.py, publishing_card.py, eval_results.py.
    """
    if options.kind == "space":
        return space_upload(options.folder, options.repo, options.weights)
    additions = CardAdditions(
        task="depth-estimation" if options.kind == "stereo-network" else "image-to-image",
        licence=options.licence,
        data_sets=tuple(options.data_set),
        results=tuple(results_of(options.results, options.folder, options.repo)),
        picture=options.picture,
        base=getattr(options, "base", None),
    )
    if options.kind == "stereo-network":
        return network_upload(options.folder, options.repo, additions, options.trained_with)
    make = pipeline_upload if options.kind == "pipeline" else lora_upload
    return make(options.folder, options.repo, additions, options.i_have_permission)


def publish_collection(options: argparse.Namespace) -> None:
    """Say what a collection would list, and make it where asked to."""
    items = [*options.models, *options.data_sets, *options.spaces, *options.papers]
    check_collection(options.title, options.owner, options.description, items)
    print("\n".join(f"{item.kind:>8}  {item.id}" for item in items))
    if options.push:
        print(push_collection(options.title, options.owner, options.description, items, HfApi(), options.private))
    else:
        print(f'{len(items)} items for the collection "{options.title}" of {options.owner}\n{NOTHING_WAS_SENT}')


def main(arguments: list[str] | None = None) -> None:
    """Check, list, and upload where asked to; end with one line and status 1 where that is not possible."""
    options = parse_arguments(arguments)
    try:
        if options.kind == "collection":
            publish_collection(options)
            return
        upload = prepare(options)
        print(upload.describe())
        print(push(upload, HfApi(), options.private, MESSAGES[options.kind]) if options.push else NOTHING_WAS_SENT)
    except (OSError, ValueError, httpx.HTTPError, HfHubHTTPError) as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise SystemExit(f"publish: error: {line}") from error


if __name__ == "__main__":
    main()
