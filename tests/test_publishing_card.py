# SPDX-License-Identifier: Apache-2.0
"""The card that goes up: names, licences, figures, pictures; and nothing else of it changed."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from training.eval_results import Result
from training.export_card import USE_RESTRICTIONS
from training.publishing_card import CardAdditions, add_figures, add_to_section, complete_card, licence_line

BODY = """# Mine

A pipeline.

## Use

```python
pipe = DiffusionPipeline.from_pretrained("runs/mine", trust_remote_code=True)
```

## Figures

Each figure names its script.

None: the project measured nothing
on these weights.

## Licences

Kept as it is: runs/mine.
"""
RESULT = Result(
    "mine", "KITTI", "mean of images", "python -m training.evaluate_stereo", {"EPE": 1.25, "D1": 0.5}, None
)


def card(front: str = "license: mit", body: str = BODY) -> str:
    return f"---\n{front}\n---\n\n{body}"


def completed(text: str, **additions) -> ModelCard:
    one = complete_card(text, "me/stereo", CardAdditions(**additions))
    content = one.files["README.md"]
    assert isinstance(content, bytes)
    return ModelCard(content.decode())


def test_only_the_loading_line_changes_where_nothing_is_added():
    one = complete_card(card(), "me/stereo", CardAdditions())
    assert one.files == {"README.md": card().replace('"runs/mine"', '"me/stereo"').encode()}
    assert one.licence == "mit" and one.notes == ("the card loads me/stereo where the folder's own loads runs/mine",)
    assert complete_card(card().replace("runs/mine", "me/stereo"), "me/stereo", CardAdditions()).notes == ()


def test_figures_take_the_place_of_none_and_stand_in_the_metadata():
    made = completed(card(), results=(RESULT,), task="depth-estimation")
    section = made.text.split("## Figures")[1].split("## Licences")[0]
    assert "Each figure names its script." in section and "None:" not in section and "on these weights" not in section
    assert "| KITTI | EPE | 1.25 | mean of images | `python -m training.evaluate_stereo` |" in section
    assert made.data.model_name == "stereo"
    assert [(one.metric_name, one.metric_value) for one in made.data.eval_results or []] == [
        ("EPE", 1.25),
        ("D1", 0.5),
    ]
    assert {one.task_type for one in made.data.eval_results or []} == {"depth-estimation"}


def test_figures_are_added_to_those_that_are_there():
    body = BODY.replace("None: the project measured nothing\non these weights.", "| a | 7 |")
    made = completed(card(body=body), results=(RESULT,))
    section = made.text.split("## Figures")[1].split("## Licences")[0]
    assert "| a | 7 |" in section and "| KITTI | D1 | 0.5 |" in section
    assert (
        completed(card(body=BODY.replace("## Figures", "## Numbers")), results=(RESULT,)).text.count("## Figures") == 1
    )


def test_data_sets_are_added_to_those_that_are_named():
    made = completed(card("license: mit\ndatasets: me/old"), data_sets=("me/pairs", "me/old"))
    assert made.data.datasets == ["me/old", "me/pairs"]
    assert completed(card(), data_sets=("me/pairs",)).data.datasets == ["me/pairs"]


@pytest.mark.parametrize("front", ["license: openrail++", "license: other\nlicense_name: openrail++-and-cc-by-nc-4.0"])
def test_restrictions_are_passed_on_once(front):
    made = completed(card(front))
    assert made.text.split("## Licences")[1].count(USE_RESTRICTIONS) == 1
    assert completed(card(front, made.text)).text.count(USE_RESTRICTIONS) == 1
    assert USE_RESTRICTIONS not in completed(card()).text


def test_a_licence_is_needed_and_not_replaced():
    assert completed(card("library_name: diffusers"), licence="mit").data.license == "mit"
    with pytest.raises(ValueError, match="`README.md` must state a licence; it states none. Say which one: --licence"):
        complete_card(card("library_name: diffusers"), "me/stereo", CardAdditions())
    with pytest.raises(ValueError, match="`--licence` must be the one that README.md states, mit; got apache-2.0"):
        complete_card(card(), "me/stereo", CardAdditions(licence="apache-2.0"))


@pytest.mark.parametrize("front", ["license: [", "- a list", "model-index: [{name: a, results: [{b: 1}]}]"])
def test_front_matter_that_the_hub_refuses_is_refused_here(front):
    with pytest.raises(
        ValueError, match="`README.md` must begin with YAML that the Hub accepts, between two lines of"
    ):
        complete_card(card(front), "me/stereo", CardAdditions())


def test_a_card_that_does_not_say_how_to_load_is_refused():
    with pytest.raises(ValueError, match=r'must show the line that loads it, from_pretrained\("..."\); it shows none'):
        complete_card(card(body="# Mine\n"), "me/stereo", CardAdditions())


LORA = """
pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("runs/lora")
On {base}, not {base}-2.
"""


def test_a_lora_keeps_its_base_or_gets_another():
    kept = completed(card(body=LORA.format(base="you/base")))
    assert kept.data.base_model == "you/base" and kept.data.to_dict()["base_model_relation"] == "adapter"
    assert 'from_pretrained("you/base")' in kept.text and 'load_lora_weights("me/stereo")' in kept.text
    other = completed(card(body=LORA.format(base="mine")), base="you/base")
    assert other.data.base_model == "you/base" and "On you/base, not mine-2." in other.text
    with pytest.raises(ValueError, match="`--base` must name the pipeline on the Hub .*; its card names mine"):
        complete_card(card(body=LORA.format(base="mine")), "me/stereo", CardAdditions())
    with pytest.raises(ValueError, match="its card names none"):
        complete_card(card(body='pipe.load_lora_weights("runs/lora")'), "me/stereo", CardAdditions())


def test_a_picture_stands_before_the_first_section(tmp_path: Path):
    picture = tmp_path / "sheet.jpg"
    picture.write_bytes(b"jpeg")
    one = complete_card(card(), "me/stereo", CardAdditions(picture=picture))
    assert one.files["sheet.jpg"] == picture and one.notes[-1] == "the card shows sheet.jpg"
    made = completed(card(), picture=picture)
    assert made.text.index("A pipeline.") < made.text.index("](sheet.jpg)") < made.text.index("## Use")
    assert completed(card(body=made.text), picture=picture).text.count("](sheet.jpg)") == 1
    (tmp_path / "sheet.txt").write_text("")
    for wrong in ("none.png", "sheet.txt"):
        with pytest.raises(FileNotFoundError, match="`--picture` must be a file of .png, .jpg, .jpeg, .webp; got "):
            complete_card(card(), "me/stereo", CardAdditions(picture=tmp_path / wrong))


def test_sections_are_found_by_their_heading_only():
    text = "# A\n\n## One\n\nfirst\n\n## Two\n\nsecond\n"
    assert add_to_section(text, "One", "more") == "# A\n\n## One\n\nfirst\n\nmore\n\n## Two\n\nsecond\n"
    assert add_to_section(text, "Two", "more") == text + "\nmore\n"
    assert add_to_section(text, "Three", "more") == text + "\n## Three\n\nmore\n"
    assert add_figures("## Figures\n\nNone: nothing.\n", ["| a |", "| b |"]) == "## Figures\n\n| a |\n| b |\n"


def test_licences_are_linked_where_there_is_a_link():
    assert licence_line("apache-2.0") == "[apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)"
    assert licence_line("cc0-1.0") == "cc0-1.0"
