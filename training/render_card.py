# SPDX-License-Identifier: Apache-2.0
"""Write the card of a pipeline folder again, from its card.json and from figures that benchmarks wrote.

    python -m training.render_card weights/zerostereo-tiny --results benchmarks/results/embedded_quality.json

card.json holds the values of model_card.md. --results become the evaluation metadata of the front matter; they are
refused unless they belong to these very weights. README.md is replaced whole or not at all. CPU, seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.eval_results import Result, model_index, results_of
from training.pipeline_folder import render_card
from training.run import write_text_atomically

VALUES = "card.json"
TASK = "image-to-image"


def card_of(values: dict[str, Any], results: list[Result]) -> str:
    """Return a pipeline's card with the results in its front matter.

    Args:
        values: of model_card.md.
        results: of these weights; may be empty.
    """
    index = model_index(results, values["title"], TASK)
    return render_card({**values, "card_data": {**values["card_data"], **({"model-index": index} if index else {})}})


def main(arguments: list[str] | None = None) -> None:
    """Write the card; end with one line and status 1 where that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help=f"pipeline folder with {VALUES}")
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="JSON", help="figures of these weights")
    options = parser.parse_args(arguments)
    try:
        if not (options.folder / VALUES).is_file():
            raise FileNotFoundError(f"`DIR` must hold {VALUES}, the values of model_card.md; got {options.folder}.")
        values = json.loads((options.folder / VALUES).read_text(encoding="utf-8"))
        results = results_of(options.results, options.folder, values["repo_id"])
        write_text_atomically(options.folder / "README.md", card_of(values, results))
    except (OSError, ValueError) as error:
        line = str(error).split("\n")[0]
        raise SystemExit(f"render_card: error: {line}") from error
    print(f"{options.folder / 'README.md'}: {sum(len(one.figures) for one in results)} figures in the front matter")


if __name__ == "__main__":
    main()
