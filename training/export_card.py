# SPDX-License-Identifier: Apache-2.0
"""The card of an export: licences of its parts put together, and the values of model_card.md. Invents no figure."""

from __future__ import annotations

import json
from typing import Any

from training.public_parts import Part

PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause")
TAGS = ["stereo", "view-synthesis", "inpainting", "depth-estimation"]
LICENCE_LINKS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "openrail++": "https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
}
USE_RESTRICTIONS = (
    "Use of these weights is restricted. Their licence, CreativeML Open RAIL++-M, allows commercial use but forbids "
    "some purposes, among them breaking the law, harming or exploiting minors, spreading falsehoods meant to harm, "
    "spreading personal data to harm someone, defaming or harassing people, exploiting the vulnerable, "
    "fully automated decisions about people's rights, discrimination, medical advice, and predictions for justice, "
    "law enforcement or asylum. Whoever passes on the weights, or weights derived from them, "
    "has to pass on these restrictions too. The binding list is attachment A of the "
    f"[licence]({LICENCE_LINKS['openrail++']})."
)
NON_COMMERCIAL = (
    "The depth network may not be used commercially: its licence is "
    f"[CC BY-NC 4.0]({LICENCE_LINKS['cc-by-nc-4.0']}), and it binds the whole folder."
)
NOT_RUN = "**The project has not yet run the official weights.**"


def combine_licences(parts: list[Part]) -> dict[str, str]:
    """Return the front matter on licences for weights made of several parts: the strictest one's.

    Permissive licences add nothing to a restrictive one. Two restrictive ones bind both and have no common identifier:
    "other", with a name of both and a link to the section of the card that explains them. Unknown makes it unknown.
    """
    licences = [part.licence for part in parts]
    if None in licences:
        return {"license": "unknown"}
    restrictive = list(dict.fromkeys(licence for licence in licences if licence not in PERMISSIVE))
    if len(restrictive) > 1:
        return {
            "license": "other",
            "license_name": "-and-".join(str(licence) for licence in restrictive),
            "license_link": "README.md#licences",
        }
    return {"license": str((restrictive or licences)[0])}


def parts_that_forbid_pushing(parts: list[Part]) -> list[Part]:
    """Return the parts whose authors state no licence: only they can allow to publish their weights again."""
    return [part for part in parts if part.licence is None or not part.is_stated]


def export_card(
    *, title: str, repo_id: str, parts: dict[str, Part], command: str, settings: dict[str, Any], with_weights: bool
) -> dict[str, Any]:
    """Return the values of model_card.md for an export of published weights.

    Args:
        title: of the card.
        repo_id: what `from_pretrained` is told.
        parts: "base" and "depth model".
        command: shell command that makes the folder again, with every revision.
        settings: the pipeline's configuration; long values are named, not shown.
        with_weights: False = the folder holds the code and this card only.
    """
    chosen = list(parts.values())
    published = [part.name for part in chosen if part.folder is None]
    exported = ["```", command, "```"]
    if with_weights:
        caution = [NOT_RUN, "", "This folder was assembled by", "", *exported]
    else:
        caution = [
            NOT_RUN,
            "",
            "**Here are no weights**, because not every part's authors say that theirs may be published again. In a "
            "checkout of the project, this one command makes the folder that the example below loads:",
            "",
            *exported,
        ]
    return {
        "card_data": {
            **combine_licences(chosen),
            "library_name": "diffusers",
            "pipeline_tag": "image-to-image",
            "tags": TAGS,
            **({"base_model": published} if published else {}),
        },
        "title": title,
        "summary": "Published weights of the ZeroStereo method, put together with a depth network as one Diffusers "
        "pipeline: one photograph in, a stereo pair out.",
        "caution": caution,
        "repo_id": repo_id,
        "picture": "",
        "configuration": configuration_table(settings),
        "training": "Nothing was trained for this folder: each part is as its authors published it, stored in half "
        "precision unless the command above says `--full-precision`.",
        "figures": "None: the project measured nothing on these weights.",
        "limits": "What else these weights do well or badly is not known to the project.",
        "part_licences": licence_section(parts),
    }


def plain_card(*, title: str, repo_id: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the values of model_card.md for parts that somebody trained and has written no card for."""
    return {
        "card_data": {"library_name": "diffusers", "pipeline_tag": "image-to-image", "tags": TAGS},
        "title": title,
        "summary": "Separately trained parts as one Diffusers pipeline: one photograph in, a stereo pair out.",
        "caution": "**Nobody has described these weights yet**: `--card` of the export writes a card with figures.",
        "repo_id": repo_id,
        "picture": "",
        "configuration": configuration_table(settings),
        "training": "Not described.",
        "figures": "None: nothing was measured on these weights.",
        "limits": "Not described.",
        "part_licences": "The licence of the weights is for those who trained them to state; none is stated here.",
    }


def configuration_table(settings: dict[str, Any]) -> list[str]:
    """Return the lines of a table of the pipeline's configuration; a long value is named, not shown."""
    rows = ["| Setting | Value |", "| --- | --- |"]
    for name, value in settings.items():
        if name == "empty_prompt_embeds":
            shown = _describe_prompt(value)
        else:
            shown = json.dumps(value)
        rows.append(f"| `{name}` | {shown} |")
    return rows


def _describe_prompt(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['shape'][0]} tokens of `{value['text_encoder']}` at `{value['revision']}`"
    return "none: the text encoder makes it" if value is None else f"{len(value)} tokens"


def licence_section(parts: dict[str, Part]) -> list[str]:
    """Return the lines on the licences of parts, by their role, with the restrictions that they carry over."""
    rows = ["| Part | From | Revision | Licence | Known from |", "| --- | --- | --- | --- | --- |"]
    for role, part in parts.items():
        source = f"[{part.name}](https://huggingface.co/{part.name})" if part.folder is None else part.name
        link = LICENCE_LINKS.get(part.licence or "")
        licence = f"[{part.licence}]({link})" if link else part.licence or "not known"
        rows.append(f"| {role} | {source} | `{part.revision}` | {licence} | {part.note} |")
    licences = {part.licence for part in parts.values()}
    if "openrail++" in licences:
        rows += ["", USE_RESTRICTIONS]
    if "cc-by-nc-4.0" in licences:
        rows += ["", NON_COMMERCIAL]
    return rows
