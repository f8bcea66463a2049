# SPDX-License-Identifier: Apache-2.0
"""Cards of exports: the strictest licence, the restrictions, every revision, no invented figure."""

import re

import pytest
from huggingface_hub import ModelCard

from training.export_card import (
    NON_COMMERCIAL,
    NOT_RUN,
    USE_RESTRICTIONS,
    base_model,
    combine_licences,
    export_card,
    parts_that_forbid_pushing,
    plain_card,
)
from training.pipeline_folder import CARD_TEMPLATE, render_card
from training.public_parts import INPAINTING_BASE, KNOWN_REPOSITORIES, STEREOGEN, Part

DEPTH = "depth-anything/Depth-Anything-V2-{}-hf"
PERMISSIVE_LARGE = "LiheYoung/depth-anything-large-hf"
SETTINGS = {
    "masked_fill": "zero",
    "depth_mean": [0.5, 0.25, 0.75],
    "empty_prompt_embeds": {"shape": [2, 1024], "text_encoder": "a/b", "revision": "0f"},
}


def known(name: str, revision: str = "c0ffee") -> Part:
    row = KNOWN_REPOSITORIES[name]
    return Part(name, revision, row.licence, row.is_stated, row.note, ("config.json",))


def card(base: str, depth: str, **changes) -> ModelCard:
    parts = {"base": known(base, "ba5e"), "depth model": known(depth, "dee9")}
    values = {
        "title": "me/stereo",
        "repo_id": "me/stereo",
        "parts": parts,
        "command": "python -m training.export_pipeline --base X",
        "settings": SETTINGS,
        "with_weights": True,
    }
    return ModelCard(render_card(export_card(**{**values, **changes})))


@pytest.mark.parametrize("base", [STEREOGEN, INPAINTING_BASE])
@pytest.mark.parametrize("depth", [DEPTH.format("Small"), PERMISSIVE_LARGE])
def test_permissive_depth_models_leave_the_licence_of_the_base(base, depth):
    made = card(base, depth)
    assert made.data.license == "openrail++" and "license_name" not in made.data.to_dict()
    assert USE_RESTRICTIONS in made.text and NON_COMMERCIAL not in made.text
    assert made.data.base_model == [base, depth]
    assert made.data.to_dict()["base_model_relation"] == "merge", "two, put together"


@pytest.mark.parametrize("size", ["Base", "Large"])
def test_non_commercial_depth_models_bind_beside_the_base(size):
    made = card(STEREOGEN, DEPTH.format(size))
    assert made.data.license == "other" and made.data.license_name == "openrail++-and-cc-by-nc-4.0"
    assert made.data.license_link == "README.md#licences" and "\n## Licences\n" in made.text
    assert USE_RESTRICTIONS in made.text and NON_COMMERCIAL in made.text


def test_licences_are_combined():
    def parts(*licences) -> list[Part]:
        return [Part("a", "0", licence, True, "") for licence in licences]

    assert combine_licences(parts("apache-2.0")) == {"license": "apache-2.0"}
    assert combine_licences(parts("mit", "cc-by-nc-4.0", "apache-2.0")) == {"license": "cc-by-nc-4.0"}
    assert combine_licences(parts("openrail++", "openrail++")) == {"license": "openrail++"}
    assert combine_licences(parts("openrail++", None)) == {"license": "unknown"}


def test_only_stated_licences_allow_to_push():
    small, large = known(DEPTH.format("Small")), known(DEPTH.format("Large"))
    folder = Part("local folder x", "not versioned", None, False, "")
    assert parts_that_forbid_pushing([known(INPAINTING_BASE), small, large]) == []
    assert parts_that_forbid_pushing([known(STEREOGEN), small, folder]) == [known(STEREOGEN), folder]


def test_the_card_tells_revisions_command_and_that_nothing_was_run():
    text = card(STEREOGEN, DEPTH.format("Small")).text
    assert NOT_RUN in text and "The project has not yet run the official weights" in NOT_RUN
    assert (
        "| base | [Windsrain/ZeroStereo](https://huggingface.co/Windsrain/ZeroStereo) | `ba5e` | [openrail++]" in text
    )
    assert "`dee9` | [apache-2.0]" in text and "states no licence; fine-tuned from" in text
    assert "```\npython -m training.export_pipeline --base X\n```" in text
    assert 'from_pretrained("me/stereo", trust_remote_code=True)' in text
    assert "| `depth_mean` | [0.5, 0.25, 0.75] |" in text
    assert "| `empty_prompt_embeds` | 2 tokens of `a/b` at `0f` |" in text
    figures = text.split("## Figures")[1].split("##")[0]
    assert "the project measured nothing on these weights" in figures and not any(map(str.isdigit, figures))


def test_a_card_without_weights_says_so():
    text = card(STEREOGEN, DEPTH.format("Small"), with_weights=False, repo_id="runs/zs").text
    assert "**Here are no weights**" in text and 'from_pretrained("runs/zs"' in text and NOT_RUN in text
    assert "**Here are no weights**" not in card(STEREOGEN, DEPTH.format("Small")).text


def test_parts_that_nobody_described_get_a_card_without_licence():
    made = ModelCard(render_card(plain_card(title="mine", repo_id="runs/mine", settings={"masked_fill": "zero"})))
    assert made.data.license is None and "none is stated here" in made.text
    assert "nothing was measured" in made.text and '| `masked_fill` | "zero" |' in made.text


def test_the_relation_is_named_where_there_is_a_base():
    assert base_model(["a/b"], "adapter") == {"base_model": "a/b", "base_model_relation": "adapter"}
    assert base_model(["a/b", "c/d"], "merge") == {"base_model": ["a/b", "c/d"], "base_model_relation": "merge"}
    assert base_model([], "finetune") == {}


def test_restrictions_are_the_licences_own_words():
    """Every item of attachment A, as a quotation that stays one in Markdown."""
    items = [line for line in USE_RESTRICTIONS.splitlines() if line.startswith("> - ")]
    assert len(items) == 11 and items[0].startswith("> - In any way that violates any applicable national, federal")
    assert items[-1].endswith("indiscriminate and arbitrarily-targeted use).") and "  " not in USE_RESTRICTIONS
    assert all(line.startswith(">") for line in USE_RESTRICTIONS.splitlines()[2:])


def test_the_cards_table_of_depth_networks_is_what_exports_go_by():
    rows = re.findall(
        r"^\| `([^`]+)`[^|]* \| ([\w.-]+) \| (yes|no) \|$", CARD_TEMPLATE.read_text("utf-8"), re.MULTILINE
    )
    known = {name: row.licence for name, row in KNOWN_REPOSITORIES.items() if name not in (STEREOGEN, INPAINTING_BASE)}
    assert {name: licence for name, licence, _ in rows} == known
    assert all((commercial == "no") == (licence == "cc-by-nc-4.0") for _, licence, commercial in rows)
