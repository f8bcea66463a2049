# SPDX-License-Identifier: Apache-2.0
"""What a `--data` option names: KIND:ROOT:WEIGHT, one part of a mixture. Which kinds there are says who mixes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PROCEDURAL = "procedural"


@dataclass(frozen=True)
class DataSource:
    """One part of a mixture.

    Attributes:
        kind: what is read there, for example "sceneflow" or "photos".
        root: folder, file or repository, as the kind wants it; None for procedural scenes.
        weight: its share of the samples is this over the sum of all weights.
    """

    kind: str
    root: str | None
    weight: float

    def __post_init__(self):
        """Check root and weight."""
        if (self.root is None) != (self.kind == PROCEDURAL):
            rule = "procedural:WEIGHT, without a root" if self.kind == PROCEDURAL else f"{self.kind}:ROOT:WEIGHT"
            raise ValueError(f"`data` must be {rule}; got the root {self.root}.")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"`data` must have a weight > 0; got {self.weight} for {self.kind}.")

    def __str__(self) -> str:
        """Write the source as on the command line."""
        return ":".join(str(part) for part in (self.kind, self.root, self.weight) if part is not None)


def parse_source(text: str, kinds: Sequence[str], example: str) -> DataSource:
    """Read KIND:ROOT:WEIGHT, or procedural:WEIGHT; the root may contain colons.

    Args:
        text: what the command line gave.
        kinds: those allowed.
        example: a right one, for the error.

    Raises:
        ValueError: another form, a kind that is not allowed, no root where there must be one, or a weight that is no
            number above 0.
    """
    kind, _, rest = text.partition(":")
    root, _, weight = rest.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        raise ValueError(
            "`data` must be KIND:ROOT:WEIGHT or procedural:WEIGHT, the weight a number, for example "
            f"{example}; got {text!r}."
        ) from None
    if kind not in kinds:
        raise ValueError(f"`data` must name one of the kinds {', '.join(kinds)}; got {kind!r}.")
    return DataSource(kind, root or None, number)
