# SPDX-License-Identifier: Apache-2.0
"""The card of a published build: front matter that the Hub and `datasets` read, text and pictures for people.

Everything in it comes from the manifest and the rows; nothing is guessed. Rows that state no licence are counted, and
it is for the caller to refuse them. It writes no file and asks no network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import pyarrow.parquet
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from datasets_builder.drawing import contact_sheet, histogram
from datasets_builder.mfs35k_rows import MfsSource
from datasets_builder.reading import read_plain_rows, sample_rows
from datasets_builder.schema import CONFIDENCE_SCALE, FEATURES, LABEL_FEATURES, decode_pair

CARD = "README.md"
GENERATED = "<!-- Written by datasets_builder.publish. Remove this line to keep your own text when it runs again. -->"
DATA_FILES = "data/train-*.parquet"
TASKS = ["depth-estimation", "image-to-image"]
TAGS = ["stereo", "stereo-matching", "disparity", "view-synthesis", "synthetic"]
SIZES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B 1B<n<10B 10B<n<100B 100B<n<1T".split()
HISTOGRAM_ROWS = 200  # rows whose maps are counted
HISTOGRAM_PARTS = 40
LARGEST_SHARE = 0.2  # of the width: the right end of the histogram; ADS draws no larger scale
SHEET_ROWS = 4
SHEET_QUALITY = 88  # of the JPEG
SHOWN_ORIGINS = 50  # rows of the licence table
SHOWN_ATTRIBUTIONS = 3  # names in each of them
# Identifiers of https://huggingface.co/docs/hub/repositories-licenses that photographs come under.
HUB_LICENCES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 c-uda etalab-2.0 gfdl odbl odc-by "
    "openrail pddl unlicense wtfpl".split()
)
COLUMNS = {
    "id": "first 16 hexadecimal digits of the sha256 of the original photograph's file",
    "left_image": "the photograph, pixel for pixel",
    "right_image": "the generated right view, PNG",
    "disparity": "px of the left view, 16-bit PNG of codes: 0 = unknown, else (code - 1) / disparity_png_scale",
    "confidence": f"of the left view, in [0, 1], 16-bit PNG of codes: (code - 1) / {CONFIDENCE_SCALE:.0f}; stretched "
    "to [0, 1] in each pair",
    "right_hole_mask": "255 = pixel of the right view that the photograph does not show: invented",
    "left_visible_mask": "255 = pixel of the left view that is also seen in the right view",
    "preview": "small JPEG for people: left view beside its disparity in colour",
    "disparity_scale": "largest disparity as a share of the width, before sharpening",
    "disparity_png_scale": "codes per px, a power of two",
    "flip_agreement": "mean agreement of the depth with that of the mirrored photograph, in [0, 1]; comparable "
    "between pairs, unlike the confidence",
    "flip_agreement_min": "smallest agreement of a pixel",
    "flip_agreement_max": "largest agreement of a pixel",
    "seed": "decides everything random of the pair",
    "width": "px, upright",
    "height": "px, upright",
    "source": "where the photograph comes from",
    "license": "of the photograph, as its source states it",
    "attribution": "whom to name",
    "pipeline_revision": "digits of the pipeline's code",
    "weights_id": "digits of the weights",
}

LIMITS = """## Limits

- The disparity is what a network saw in one photograph, not measured: shapes may be wrong while the labels still fit
  the pictures exactly. `confidence` and `flip_agreement` say where the network contradicts itself.
- Pixels in `right_hole_mask` are invented. Leave them out of a photometric loss.
- Cameras, people and places are those of the photographs, with whatever bias their collection has.
- Surfaces that mirror or let light through move between the views as if they were painted."""


@dataclass
class Origin:
    """Photographs of one origin under one licence.

    Attributes:
        pairs: how many.
        attributions: some of the names, in the order in which they come.
        more_names: whether there are others.
    """

    pairs: int = 0
    attributions: list[str] = field(default_factory=list)
    more_names: bool = False

    def add(self, attribution: str) -> None:
        """Count one pair."""
        self.pairs += 1
        if attribution and attribution not in self.attributions:
            if len(self.attributions) < SHOWN_ATTRIBUTIONS:
                self.attributions.append(attribution)
            else:
                self.more_names = True


@dataclass
class Summary:
    """What the card says of the rows.

    Attributes:
        origins: by (origin, licence as stated); licence "" = none stated.
        unlicensed: the first sources without licence.
        disparities: counts of pixels by disparity / width, in equal parts of [0, LARGEST_SHARE].
        confidences: counts of pixels by confidence, in equal parts of [0, 1].
        counted_rows: rows of which pixels were counted.
    """

    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    unlicensed: list[str] = field(default_factory=list)
    disparities: np.ndarray = field(default_factory=lambda: np.zeros(HISTOGRAM_PARTS, np.int64))
    confidences: np.ndarray = field(default_factory=lambda: np.zeros(HISTOGRAM_PARTS, np.int64))
    counted_rows: int = 0

    @property
    def unlicensed_count(self) -> int:
        """How many pairs state no licence."""
        return sum(origin.pairs for (_, licence), origin in self.origins.items() if not licence)


def summarise(folder: Path, manifest: Mapping[str, Any]) -> Summary:
    """Read sources and licences of every row, and count the pixels of some."""
    summary = Summary()
    for entry in manifest["shards"]:
        for row in read_plain_rows(folder / entry["file"], ["source", "license", "attribution"]):
            licence = row["license"].strip()
            key = (origin_of(row["source"], manifest["source"]), licence)
            summary.origins.setdefault(key, Origin()).add(row["attribution"])
            if not licence and len(summary.unlicensed) < 3:
                summary.unlicensed.append(row["source"])
    for row in sample_rows(folder, manifest, HISTOGRAM_ROWS, seed=0):
        pair = decode_pair(row)
        shares = pair["disparity"][pair["valid_disparity_mask"]] / pair["width"]
        summary.disparities += np.histogram(shares, HISTOGRAM_PARTS, (0.0, LARGEST_SHARE))[0]
        summary.confidences += np.histogram(pair["confidence"], HISTOGRAM_PARTS, (0.0, 1.0))[0]
        summary.counted_rows += 1
    return summary


def origin_of(source: str, described: Mapping[str, Any]) -> str:
    """Return where a photograph comes from, so coarse that many share it: data set, host, or topmost folder.

    Args:
        source: of the row.
        described: the manifest's `source`.
    """
    if described["kind"] == "stream":
        return str(described["name"])
    if "://" in source:
        return urlsplit(source).netloc or source
    folder, separator, _ = source.partition("/")
    return f"{described['name']}/{folder}" if separator else str(described["name"])


def licence_id(licence: str) -> str | None:
    """Return the Hub's identifier of a licence as people write it, or None where the Hub has none."""
    words = re.sub(r"[\s_]+", "-", licence.strip().lower())
    known = {"cc0": "cc0-1.0", "cc-zero": "cc0-1.0"}.get(words, words)
    return known if known in HUB_LICENCES else None


def licence_fields(licences: set[str]) -> dict[str, Any]:
    """Return the front matter on licences: the one identifier, or "other" with a name and a link to the table.

    Args:
        licences: of all rows, none of them empty; at least one.
    """
    known = {licence_id(licence) or licence for licence in licences}
    only = next(iter(known))
    if len(known) == 1 and only in HUB_LICENCES:
        return {"license": only}
    name = re.sub(r"[^a-z0-9.]+", "-", only.lower()).strip("-") if len(known) == 1 else "one-for-each-photograph"
    return {"license": "other", "license_name": name, "license_link": f"{CARD}#licences"}


def size_category(pairs: int) -> str:
    """Return the Hub's word for a number of rows."""
    return next((name for power, name in enumerate(SIZES) if pairs < 1000 * 10**power), "n>1T")


def card_data(
    folder: Path, manifest: Mapping[str, Any], summary: Summary, repo_id: str, licence_for_all: str
) -> DatasetCardData:
    """Make the front matter.

    Args:
        folder: of the build.
        manifest: of the build.
        summary: of its rows.
        repo_id: where it is published.
        licence_for_all: of rows that state none; may be empty where all do.
    """
    pairs, features = manifest["counts"]["pairs"], _features(manifest)
    metadata = [pyarrow.parquet.read_metadata(folder / entry["file"]) for entry in manifest["shards"]]
    unpacked = sum(one.row_group(group).total_byte_size for one in metadata for group in range(one.num_row_groups))
    data = DatasetCardData(
        pretty_name=repo_id.rpartition("/")[2].replace("-", " ").replace("_", " "),
        task_categories=TASKS,
        size_categories=[size_category(pairs)],
        tags=TAGS,
        **licence_fields({licence or licence_for_all for _, licence in summary.origins}),
    )
    info = DatasetInfo(
        features=features,
        splits=SplitDict({"train": SplitInfo("train", num_bytes=unpacked, num_examples=pairs)}),
        download_size=sum(entry["bytes"] for entry in manifest["shards"]),
        dataset_size=unpacked,
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": "train", "path": DATA_FILES}]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return data


def _features(manifest: Mapping[str, Any]) -> Features:
    return LABEL_FEATURES if manifest["options"]["labels_only"] else FEATURES


def make_card(
    folder: Path, manifest: Mapping[str, Any], summary: Summary, repo_id: str, licence_for_all: str = ""
) -> dict[str, bytes]:
    """Make card and pictures of a build.

    Args:
        folder: of the build.
        manifest: of the build, of at least one pair.
        summary: of its rows.
        repo_id: where it is published.
        licence_for_all: of rows that state none; may be empty where all do.

    Returns:
        Content by path in the repository.
    """
    data = card_data(folder, manifest, summary, repo_id, licence_for_all)
    sections = [
        GENERATED,
        f"# {data.pretty_name}",
        _opening(manifest),
        "![Pairs by chance: left, disparity, confidence, right, anaglyph](assets/pairs.jpg)"
        if not manifest["options"]["labels_only"]
        else "![Rows by chance: disparity, confidence, masks](assets/pairs.jpg)",
        _loading(repo_id),
        _columns(manifest),
        _counts(manifest, summary),
        _licences(summary, licence_for_all),
        _making(manifest),
        _limits(manifest),
    ]
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    sheet = contact_sheet(sample_rows(folder, manifest, SHEET_ROWS, seed=0))
    disparities = histogram(summary.disparities, 0.0, LARGEST_SHARE, "disparity, share of the width")
    confidences = histogram(summary.confidences, 0.0, 1.0, "confidence")
    return {
        CARD: str(card).encode(),
        "assets/pairs.jpg": _encoded(sheet, "JPEG", quality=SHEET_QUALITY),
        "assets/disparity.png": _encoded(disparities, "PNG", optimize=True),
        "assets/confidence.png": _encoded(confidences, "PNG", optimize=True),
    }


def _encoded(picture: PIL.Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _opening(manifest: Mapping[str, Any]) -> str:
    pairs = manifest["counts"]["pairs"]
    if manifest["source"]["kind"] == MfsSource.kind:
        return (
            f"{pairs} stereo pairs for stereo matching, taken over from a folder in the layout of MfS35K. They were "
            "made elsewhere: `seed` is -1 and the flip agreement NaN, because the layout does not hold them."
        )
    if manifest["options"]["labels_only"]:
        return (
            f"Disparity, confidence and masks of {pairs} photographs for stereo matching. **The photographs are not "
            "here**, because their licence asks for it: `datasets_builder.attach.attach_photos` joins your own copies "
            "to the rows by the hash of their files."
        )
    return (
        f"{pairs} stereo pairs for stereo matching. The left view of each is a photograph, its disparity was "
        "estimated from that one picture, and the right view is the photograph warped by this disparity, its holes "
        "filled by diffusion (ZeroStereo, arXiv 2501.08654). Outside `right_hole_mask` the right view equals the "
        "warped left view: the labels are exact for the pictures."
    )


def _loading(repo_id: str) -> str:
    return f"""## Loading

```python
from datasets import load_dataset

pairs = load_dataset("{repo_id}", split="train", streaming=True)
row = next(iter(pairs))
```

For training, without any further code:

```python
import numpy as np

codes = np.asarray(row["disparity"]).astype(np.float32)
known = codes > 0
disparity = (codes - 1) / row["disparity_png_scale"]  # [H,W], px of the left view, where known
confidence = (np.asarray(row["confidence"]).astype(np.float32) - 1) / {CONFIDENCE_SCALE:.0f}  # [H,W] in [0, 1]
right_hole_mask = np.asarray(row["right_hole_mask"]) > 127  # [H,W], right view, True = invented
```

In a checkout of the project this makes float32 arrays of everything:

```python
from datasets_builder.schema import decode_pair

pairs = pairs.map(decode_pair)
```"""


def _columns(manifest: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | {COLUMNS[name]} |" for name in _features(manifest)]
    return "\n".join(["## Columns", "", "| Column | What |", "| --- | --- |", *rows])


def _counts(manifest: Mapping[str, Any], summary: Summary) -> str:
    counts = manifest["counts"]
    rows = [f"| {kind} | {number} |" for kind, number in counts["rejected"].items()]
    rejected = ["| Rejected | Photographs |", "| --- | --- |", *rows] if rows else ["None was rejected."]
    size = sum(entry["bytes"] for entry in manifest["shards"])
    shards = "1 file" if len(manifest["shards"]) == 1 else f"{len(manifest['shards'])} files"
    return "\n".join(
        [
            "## Counts",
            "",
            f"{counts['pairs']} pairs of {counts['photos']} photographs, {shards}, {size / 1e6:.1f} MB.",
            "",
            *rejected,
            "",
            f"Pixels of {summary.counted_rows} pairs chosen by chance:",
            "",
            "![Histogram of disparities as shares of the width](assets/disparity.png)",
            "![Histogram of confidences](assets/confidence.png)",
        ]
    )


def _licences(summary: Summary, licence_for_all: str) -> str:
    lines = ["## Licences", "", "Of the photographs; each row names its own.", ""]
    lines += ["| Photographs from | Licence | Pairs | To be named |", "| --- | --- | --- | --- |"]
    ordered = sorted(summary.origins.items(), key=lambda entry: (-entry[1].pairs, entry[0]))
    for (origin, licence), found in ordered[:SHOWN_ORIGINS]:
        names = ", ".join([*found.attributions, *(["others, see the rows"] if found.more_names else [])])
        stated = licence or f"{licence_for_all} (stated by the publisher; the rows have none)"
        lines.append(f"| {_cell(origin)} | {_cell(stated)} | {found.pairs} | {_cell(names)} |")
    rest = ordered[SHOWN_ORIGINS:]
    if rest:
        count = sum(found.pairs for _, found in rest)
        listed = ", ".join(sorted({licence or licence_for_all for (_, licence), _ in rest}))
        lines.append(f"| {len(rest)} others | {_cell(listed)} | {count} | see the rows |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Make a text that a stranger wrote safe to stand in a table."""
    return re.sub(r"([\\|`<>\[\]*_!])", r"\\\1", " ".join(text.split()))


def _making(manifest: Mapping[str, Any]) -> str:
    options = {name: value for name, value in manifest["options"].items() if value is not None}
    if manifest["source"]["kind"] == MfsSource.kind:
        return (
            "## How it was made\n\nTaken over by `python -m datasets_builder.import_mfs35k`, which makes no pair. "
            "`manifest.json` has a hash of every file."
        )
    lines = [
        "## How it was made",
        "",
        "With `python -m datasets_builder.generate_pairs`; equal options and photographs give equal pairs. Equal "
        "manifests mean equal bytes: `manifest.json` has a hash of every file.",
        "",
    ]
    lines += ["| Option | Value |", "| --- | --- |", *(f"| `{name}` | {value} |" for name, value in options.items())]
    lines += ["", "| Made on | Libraries | Files |", "| --- | --- | --- |"]
    for machine in manifest["made_on"]:
        libraries = ", ".join(f"{key} {machine[key]}" for key in sorted(machine) if key not in ("device", "shards"))
        lines.append(f"| {machine['device']} | {libraries} | {len(machine['shards'])} |")
    return "\n".join(lines)


def _limits(manifest: Mapping[str, Any]) -> str:
    kept = "\n- The files of the photographs are published with all their metadata: place, camera, names."
    return LIMITS + kept if manifest["options"]["keep_metadata"] and not manifest["options"]["labels_only"] else LIMITS
