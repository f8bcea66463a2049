# SPDX-License-Identifier: Apache-2.0
"""Draw some pairs of a finished build: left | disparity | confidence | right | anaglyph, one row for each.

    python -m datasets_builder.preview out/pairs                                     # six rows, out/pairs/preview.png
    python -m datasets_builder.preview out/pairs --rows 20 --seed 1 --output a.jpg   # CPU, seconds

The suffix of --output decides the format: .png, or .jpg for a smaller file.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from datasets_builder.drawing import contact_sheet
from datasets_builder.manifest import read_manifest
from datasets_builder.plan import write_atomically
from datasets_builder.reading import sample_rows

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
QUALITY = 90  # of a JPEG


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the build")
    parser.add_argument("--rows", type=int, default=6, metavar="N", help="how many pairs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides which pairs (%(default)s)")
    parser.add_argument("--side", type=int, default=240, metavar="PX", help="longer side of a panel (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="picture to write; default: DIR/preview.png")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Draw and write the sheet.

    Raises:
        FileNotFoundError: no complete build.
        ValueError: numbers out of range, a build without pairs, or an unknown suffix.
    """
    output = options.output or options.folder / "preview.png"
    kind = FORMATS.get(output.suffix.lower())
    if kind is None:
        raise ValueError(f"`--output` must end in {', '.join(FORMATS)}; got {output}.")
    if options.rows < 1:
        raise ValueError(f"`--rows` must be at least 1; got {options.rows}.")
    manifest = read_manifest(options.folder)
    sheet = contact_sheet(sample_rows(options.folder, manifest, options.rows, options.seed), options.side)
    encoded = io.BytesIO()
    sheet.save(encoded, kind, quality=QUALITY, optimize=True)
    write_atomically(output, encoded.getvalue())
    print(f"{output}: {sheet.width} x {sheet.height} px, {len(encoded.getvalue()) / 1e6:.1f} MB")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 for options that cannot be followed."""
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
