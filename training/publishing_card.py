# SPDX-License-Identifier: Apache-2.0
"""The card that goes up: the folder's own, with the repository's name and what its publisher adds to it.

Nothing is taken away but "None" where figures come in its place. Text in, text out: asks no network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard

from training.eval_results import Result, figure_table, model_index
from training.export_card import LICENCE_LINKS, USE_RESTRICTIONS

CARD = "README.md"
LORA_CALL, LOAD_CALL = "load_lora_weights", "from_pretrained"
NO_FIGURES = re.compile(r"^None: .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)  # the paragraph
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PICTURE_TEXT = "photograph, disparity, warped view with holes in magenta, right view, anaglyph"


@dataclass(frozen=True)
class CardAdditions:
    """What a publisher adds to a card.

    Attributes:
        task: of the Hub, that the results belong to.
        licence: identifier of the Hub, for a card that states none.
        data_sets: ids of data sets on the Hub that it was trained on.
        results: figures of these very weights.
        picture: file that benchmarks.contact_sheet made with these weights.
        base: for a LoRA: id of the pipeline that it goes onto, where its card names a folder.
    """

    task: str = "image-to-image"
    licence: str | None = None
    data_sets: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    picture: Path | None = None
    base: str | None = None


class CompletedCard(NamedTuple):
    """A card for a repository: its licence, the files that it consists of, and what was changed, for people."""

    licence: Any
    is_restricted: bool  # openrail++ is among its licences
    files: dict[str, Path | bytes]
    notes: tuple[str, ...]


def complete_card(text: str, repo_id: str, additions: CardAdditions) -> CompletedCard:
    """Return a card with the repository's name in its loading line, and with the additions.

    Args:
        text: of the folder's README.md.
        repo_id: USER/NAME.
        additions: may be empty.

    Raises:
        FileNotFoundError: no such picture.
        ValueError: the front matter is no YAML that huggingface_hub accepts, states no licence or another one; the
            card shows no line that loads it; a LoRA's card names a folder as its base.
    """
    try:
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"`{CARD}` must begin with YAML that the Hub accepts, between two lines of ---: {error}."
        ) from error
    data = card.data
    data.license = _licence(data.license, additions.licence)
    notes = []
    body, note = _name_repository(card.text, repo_id)
    notes += note
    if f"{LORA_CALL}(" in body:
        body, data.base_model = _name_base(body, additions.base)
        data["base_model_relation"] = "adapter"
    if additions.data_sets:
        data.datasets = list(dict.fromkeys([*_as_list(data.datasets), *additions.data_sets]))
        notes.append(f"the card names the data sets {', '.join(additions.data_sets)}")
    if additions.results:
        index = model_index(list(additions.results), repo_id.partition("/")[2], additions.task)
        measured: Any = ModelCard(f"---\n{yaml.safe_dump({'model-index': index})}---\n").data
        data.model_name, data.eval_results = measured.model_name, measured.eval_results
        body = add_figures(body, figure_table(list(additions.results)))
        notes.append(f"the card shows {sum(len(one.figures) for one in additions.results)} figures")
    files: dict[str, Path | bytes] = {}
    if additions.picture is not None:
        body, name = _add_picture(body, additions.picture)
        files[name] = additions.picture
        notes.append(f"the card shows {name}")
    is_restricted = "openrail++" in str(data.license_name or data.license)
    if is_restricted and USE_RESTRICTIONS not in body:
        body = add_to_section(body, "Licences", USE_RESTRICTIONS)
        notes.append("the card passes on the restrictions of openrail++")
    content = f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"
    return CompletedCard(data.license, is_restricted, {CARD: content.encode(), **files}, tuple(notes))


def _licence(stated: Any, given: str | None) -> Any:
    if not stated and not given:
        raise ValueError(f"`{CARD}` must state a licence; it states none. Say which one: --licence NAME.")
    if stated and given and stated != given:
        raise ValueError(f"`--licence` must be the one that {CARD} states, {stated}; got {given}. Edit the card.")
    return stated or given


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _name_repository(body: str, repo_id: str) -> tuple[str, list[str]]:
    """Put the repository's name into the line that loads what is published."""
    call = LORA_CALL if f"{LORA_CALL}(" in body else LOAD_CALL
    names = re.findall(rf'{call}\("([^"]+)"', body)
    if not names:
        raise ValueError(f'`{CARD}` must show the line that loads it, {call}("..."); it shows none.')
    notes = [] if names[0] == repo_id else [f"the card loads {repo_id} where the folder's own loads {names[0]}"]
    return body.replace(f'{call}("{names[0]}"', f'{call}("{repo_id}"'), notes


def _name_base(body: str, base: str | None) -> tuple[str, str]:
    """Return a LoRA's text and the id of its base, which `base` replaces all over the text where it is given."""
    own = re.findall(rf'{LOAD_CALL}\("([^"]+)"', body)
    if base is None and (not own or own[0].count("/") != 1):
        found = own[0] if own else "none"
        raise ValueError(
            f"`--base` must name the pipeline on the Hub that the LoRA goes onto; its card names {found}."
        )
    if base is None or not own:
        return body, base or own[0]
    return re.sub(rf"(?<![\w./-]){re.escape(own[0])}(?![\w/-])", lambda _: base, body), base


def _section(body: str, heading: str) -> tuple[int, int] | None:
    """Return where the text of a section begins and ends, or None."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", body, re.MULTILINE | re.DOTALL)
    return found.span(1) if found else None


def add_to_section(body: str, heading: str, text: str) -> str:
    """Return a card's text with more at the end of a section, which is made at the end of the card if missing."""
    span = _section(body, heading)
    if span is None:
        return f"{body.rstrip()}\n\n## {heading}\n\n{text}\n"
    before, inside, after = body[: span[0]], body[span[0] : span[1]], body[span[1] :]
    parts = [part for part in (inside.strip(), text) if part]
    return f"{before}\n" + "\n\n".join(parts) + (f"\n\n{after}" if after else "\n")


def add_figures(body: str, table: list[str]) -> str:
    """Return a card's text with a table in its section Figures, in place of "None: ..." if it says so."""
    span = _section(body, "Figures")
    if span is not None:
        kept = NO_FIGURES.sub("", body[span[0] : span[1]])
        body = body[: span[0]] + kept.rstrip() + "\n\n" + body[span[1] :]
    return add_to_section(body, "Figures", "\n".join(table))


def _add_picture(body: str, picture: Path) -> tuple[str, str]:
    if not picture.is_file() or picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise FileNotFoundError(f"`--picture` must be a file of {', '.join(PICTURE_SUFFIXES)}; got {picture}.")
    if f"]({picture.name})" in body:
        return body, picture.name
    head, separator, rest = body.partition("\n## ")
    return f"{head.rstrip()}\n\n![{PICTURE_TEXT}]({picture.name})\n{separator}{rest}", picture.name


def licence_line(licence: str) -> str:
    """Return a licence's name for a card, with a link where there is one."""
    link = LICENCE_LINKS.get(licence)
    return f"[{licence}]({link})" if link else licence
