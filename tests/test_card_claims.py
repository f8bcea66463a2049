# SPDX-License-Identifier: Apache-2.0
"""Each file, command, flag and figure that the card, the README and docs/ name exists; the Hub accepts every card.

A figure is a number with a unit (or a share of 1) in a row of a table. Its script must stand in the row, or in the
paragraph before or after the table. Where the script's JSON is in benchmarks/results/, the number must be in it,
rounded.
"""

import contextlib
import functools
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import ModelCard

from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import make_small_raft
from tests.test_repository import code_blocks
from training.export_card import export_card, plain_card
from training.inpainting_result import LORA_CARD
from training.pipeline_folder import render_card
from training.public_parts import KNOWN_REPOSITORIES, Part
from training.publishing_card import CardAdditions, complete_card
from training.stereo_network_card import network_card

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "model_card.md", *sorted(ROOT.glob("docs/**/*.md"))]
FOLDERS = ("training", "datasets_builder", "space", "benchmarks", "tests", "examples", "weights", "docs")
FOREIGN_FLAGS = {"--index-url", "--config_file"}  # of pip and accelerate
IS_FILE = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/[\w./-]*\w|requirements[\w-]*\.txt|\w+\.(?:py|md))")
OWN_OUTPUTS = ("weights/my-pipeline",)  # that a command in a document makes
UNITS = "dB|GiB|MiB|GB|MB|ms|s|minutes|hours|core hours|times|pairs/s|photographs/s"
FIGURE = re.compile(rf"(?<![\w.])\d*\.?\d+ ?(?:{UNITS})\b|(?<![\w.])\.\d{{2,}}\b")
STATED = re.compile(rf"(?<![\w.-])(\d*\.\d+(?![\w.])|\d+(?= ?(?:%|(?:{UNITS})\b)))( ?%)?")  # what is compared
BENCHMARK = re.compile(r"benchmarks[./](?:results/)?(\w+)")
# Benchmarks whose figures stand in documents, but in no file of results:
WITHOUT_RESULTS = {"warp", "large_photographs", "whole_job", "dataset_building", "readme_pictures"}
SCRIPT = re.compile(r"(?:benchmarks|tests)[./]\w+|training[./](?:train|evaluate)_\w+")


class Command(NamedTuple):
    """A command in a document: the module that it runs, and the words after it."""

    module: str
    words: tuple[str, ...]


def document_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[Command]:
    """Return every command that runs a script of ours, by file or with -m, also through a launcher."""
    blocks = [block.replace("\\\n", " ") for block in code_blocks(text)]
    found = []
    for line in [line for block in blocks for line in block.splitlines()] + inline_code(text):
        line = line.split(" #")[0]
        match = re.search(r"(?:\bpython3? (\w+)\.py|-m ((?:training|datasets_builder|benchmarks)\.[\w.]+))(.*)", line)
        if match and not line.lstrip().startswith("from "):
            found.append(Command(match[1] or match[2], tuple(match[3].split())))
    return found


@functools.cache
def help_of(module: str, *subcommand: str) -> str:
    """Return what --help of a script of ours prints."""
    main = importlib.import_module(module).main
    before, sys.argv = sys.argv, [module, *subcommand, "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    assert ended.value.code in (0, None), module
    return out.getvalue()


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def known_flags(command: Command) -> set[str]:
    """Return the flags of a command, those of its sub-command where it has some."""
    is_family = command.module == "training.publish" and command.words[:1]
    return flags(help_of(command.module, *command.words[:1] if is_family else ()))


def scripts() -> list[str]:
    """Return every module with a command line."""
    paths = [ROOT / "synthesize.py", *(path for folder in FOLDERS[:4] for path in ROOT.glob(f"{folder}/*.py"))]
    with_main = [path for path in paths if "\ndef main(" in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_main]
    return [name for name in names if not name.startswith("space.")]


def paragraphs(text: str) -> list[str]:
    """Return the blocks between empty lines, outside code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [one for one in re.split(r"\n\s*\n", prose) if one.strip()]


def rows_with_scripts(text: str) -> Iterator[tuple[str, str]]:
    """Yield each row of a table, with the text in which its script may stand."""
    blocks = paragraphs(text)
    for number, block in enumerate(blocks):
        lines = block.splitlines()
        if len(lines) > 2 and re.fullmatch(r"\|[ :|-]+\|", lines[1]):
            around = "\n".join(one for one in blocks[max(0, number - 1) : number + 2] if one is not block)
            for row in lines[2:]:
                yield row, f"{row}\n{around}"


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)


def numbers(value: Any) -> Iterator[float]:
    """Yield every number of a JSON file, those inside of its texts too."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from numbers(name)
            yield from numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, str):
        yield from (float(one) for one in re.findall(r"\d*\.?\d+", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


@functools.cache
def measured(script: str) -> tuple[float, ...]:
    """Return all numbers of the results of a benchmark that are in the repository."""
    files = sorted((ROOT / "benchmarks" / "results").glob(f"{script}*.json"))
    return tuple(one for file in files for one in numbers(json.loads(file.read_text(encoding="utf-8"))))


def is_measured(stated: str, script: str, as_share: bool = False) -> bool:
    """Tell whether a number, as it is written, is one of a benchmark's, rounded alike; percents as shares."""
    digits = len(stated.partition(".")[2])
    slack = 0.5000001 * 10**-digits
    scales = (1, 100) if as_share else (1,)
    return any(abs(abs(one) * scale - float(stated)) <= slack for one in measured(script) for scale in scales)


def missing_files(text: str, folder: Path = ROOT) -> list[str]:
    """Return the files and folders that a text names as code and that are neither in the repository nor beside it."""
    named = {one for one in inline_code(text) if IS_FILE.fullmatch(one.rstrip("/"))} - set(OWN_OUTPUTS)
    return [one for one in sorted(named) if not any((base / one).exists() for base in (ROOT, folder))]


def command_faults(text: str) -> list[str]:
    """Return what is wrong with the commands in a text."""
    faults = []
    for command in commands(text):
        path = ROOT / (command.module.replace(".", "/") + ".py")
        if not path.is_file():
            faults.append(f"there is no {command.module}")
        elif "\ndef main(" not in path.read_text(encoding="utf-8"):
            faults.append(f"{command.module} is no command")
        else:
            unknown = flags(" ".join(command.words)) - known_flags(command)
            faults += [f"{command.module} has no {flag}" for flag in sorted(unknown)]
    return faults


def unknown_variables(text: str) -> set[str]:
    """Return the variables that a text sets for make and that the Makefile does not have."""
    lines = [line for block in code_blocks(text) for line in block.splitlines()] + inline_code(text)
    named = {name for line in lines if line.startswith("make ") for name in re.findall(r"\b([A-Z_]+)=", line)}
    return named - set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def nameless_figures(text: str) -> list[str]:
    """Return the rows of tables that state a figure without its script."""
    rows = rows_with_scripts(text)
    return [row for row, around in rows if FIGURE.search(without_code(row)) and not SCRIPT.search(around)]


def stated_figures(text: str) -> Iterator[tuple[str, str]]:
    """Yield (text, benchmark that made its figures): rows of tables, and paragraphs that are none."""
    for part, around in [*rows_with_scripts(text), *((one, one) for one in paragraphs(text) if one[0] != "|")]:
        beside = set(BENCHMARK.findall(part if SCRIPT.search(part) else around))
        if len(beside) == 1:
            yield without_code(part), *beside


def wrong_figures(text: str) -> list[str]:
    """Return the numbers that the results of their benchmark, where the repository has them, do not have."""
    return [
        number
        for part, script in stated_figures(text)
        if measured(script)
        for number, percent in STATED.findall(part)
        if not is_measured(number, script, as_share=bool(percent))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_id)
def test_every_claim_of_a_document_holds(document):
    text = document.read_text(encoding="utf-8")
    assert missing_files(text, document.parent) == []
    assert command_faults(text) == []
    assert unknown_variables(text) == set()
    assert nameless_figures(text) == []
    assert wrong_figures(text) == []


FALSE_CLAIMS = """
See `training/nothing.py`, `requirements-none.txt` and `training/run.py`; `photo.jpg` is yours.

```
python -m training.nothing --output out
python -m training.run
python -m training.publish space \\
    --weights a --results b
python synthesize.py a.jpg --no-such-flag --seed 3
make demo PHOTO=a.jpg FRAME=b
```

| What | Figure |
| --- | ---: |
| a fill | 1.5 dB |
| another, `tests/test_filling.py` | 2.5 dB |
| few steps, `benchmarks/few_steps.py` | 17.93 dB, 10.1 dB |

Holes: 19.57 dB (`benchmarks/embedded_quality.py`), really 19.58.
"""


def test_false_claims_are_found():
    assert missing_files(FALSE_CLAIMS) == ["requirements-none.txt", "training/nothing.py"]
    assert command_faults(FALSE_CLAIMS) == [
        "there is no training.nothing",
        "training.run is no command",
        "training.publish has no --results",
        "synthesize has no --no-such-flag",
    ]
    assert unknown_variables(FALSE_CLAIMS) == {"FRAME"}
    assert nameless_figures(FALSE_CLAIMS.split("Holes:")[0]) == ["| a fill | 1.5 dB |"]
    assert wrong_figures(FALSE_CLAIMS) == ["1.5", "17.93", "19.57"]


@pytest.mark.parametrize(
    ("document", "true", "false", "found"),
    [
        ("docs/measured.md", "10.2 s;", "1.2 s;", ["1.2"]),
        ("docs/measured.md", "826 MiB", "286 MiB", ["286"]),
        ("docs/measured.md", "19.58 dB;", "19.57 dB;", ["19.57"]),
        ("docs/stereo.md", "| 36.3 |", "| 39.3 |", ["39.3"]),
    ],
)
def test_a_changed_figure_of_a_document_is_found(document, true, false, found):
    """In a row that names its script, and in tables whose script stands in the paragraph before."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count(true) == 1
    assert wrong_figures(text.replace(true, false)) == found


def test_benchmarks_without_results_are_known():
    figures = {script for one in DOCUMENTS for part, script in stated_figures(one.read_text()) if STATED.search(part)}
    assert {script for script in figures if not measured(script)} == WITHOUT_RESULTS


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_id)
def test_flags_in_the_text_are_those_of_a_command(document):
    kinds = ("pipeline", "lora", "stereo-network", "space", "collection")
    texts = [help_of(name) for name in scripts()] + [help_of("training.publish", kind) for kind in kinds]
    known = flags("\n".join(texts)) | FOREIGN_FLAGS
    text = document.read_text(encoding="utf-8")
    named = flags("\n".join(one for one in inline_code(text) if one.startswith("--")))
    assert named - known == set()


def test_the_card_names_results_whose_figures_are_compared():
    """The test above compares something."""
    text = (ROOT / "model_card.md").read_text(encoding="utf-8")
    assert {"few_steps", "photographs_alone"} <= {
        name for name in re.findall(r"benchmarks/(\w+)", text) if measured(name)
    }
    assert is_measured("17.2", "few_steps") and not is_measured("17.93", "few_steps")
    assert is_measured("19.58", "embedded_quality") and not is_measured("19.57", "embedded_quality")


def test_readers_of_claims_see_what_is_there():
    text = (
        "Run `python -m training.publish space --push` or:\n\n```\n"
        "accelerate launch --config_file a.yaml -m training.x \\\n    --steps 3 # --not-this\n"
        "python synthesize.py a.jpg --format mpo\n```\n\n"
        "| What | Figure |\n| --- | ---: |\n| fill | 1.5 dB |\n| `2.5 dB` | none |\n\nmade by `benchmarks/fills.py`\n"
    )
    assert commands(text) == [
        Command("training.x", ("--steps", "3")),
        Command("synthesize", ("a.jpg", "--format", "mpo")),
        Command("training.publish", ("space", "--push")),
    ]
    rows = list(rows_with_scripts(text))
    assert [row for row, _ in rows] == ["| fill | 1.5 dB |", "| `2.5 dB` | none |"]
    assert all(SCRIPT.search(around) for _, around in rows)
    assert [bool(FIGURE.search(without_code(row))) for row, _ in rows] == [True, False]
    assert FIGURE.search("| SSIM .946 |") and not FIGURE.search("| 3 px at version 1.2.946 |")
    assert flags("--a-b=3 --c -d ---- x--y") == {"--a-b", "--c"}


VALIDATE = """
import json, sys
from huggingface_hub import ModelCard
for name, text in json.loads(open(sys.argv[1]).read()).items():
    try:
        ModelCard(text).validate(repo_type="model")
    except ValueError as error:
        raise SystemExit(f"{name}: {error}")
print("accepted")
"""


def every_card(folder: Path) -> dict[str, str]:
    """Return one card of each kind that the project writes."""
    parts = {
        role: Part(name, "c0ffee", row.licence, row.is_stated, row.note)
        for role, name in (
            ("base", "Windsrain/ZeroStereo"),
            ("depth model", "depth-anything/Depth-Anything-V2-Large-hf"),
        )
        for row in [KNOWN_REPOSITORIES[name]]
    }
    settings = {"masked_fill": "zero", "empty_prompt_embeds": None}
    common: dict[str, Any] = {"title": "t", "repo_id": "me/t", "parts": parts, "command": "c", "settings": settings}
    make_small_raft().save_pretrained(folder / "raft")
    words = {"title": "t", "base": "me/b", "repo_id": "me/t", "training": "x", "figures": "None: x", "licences": "x"}
    lora = complete_card(f"---\nlicense: mit\n---\n{LORA_CARD.format(**words)}", "me/lora", CardAdditions())
    content = lora.files["README.md"]
    assert isinstance(content, bytes)
    return {  # in the forms that the commands write
        "export": render_card(export_card(**common, with_weights=True)),
        "card only": render_card(export_card(**common, with_weights=False)),
        "plain": render_card(plain_card(title="t", repo_id="me/t", settings=settings)),
        "embedded": (ROOT / "weights" / "zerostereo-tiny" / "README.md").read_text(encoding="utf-8"),
        "stereo network": network_card(folder / "raft", "me/raft", CardAdditions(licence="mit")),
        "lora": content.decode(),
    }


def test_the_hub_accepts_the_front_matter_of_every_card(tmp_path):
    """First the library by itself, strictly; then through it a Hub, which is the loopback one."""
    cards = every_card(tmp_path)
    for name, text in cards.items():
        data = ModelCard(text, ignore_metadata_errors=False).data
        assert data.library_name == "diffusers" or name == "lora", name
    assert ModelCard(cards["export"]).data.to_dict()["base_model_relation"] == "merge"
    (tmp_path / "cards.json").write_text(json.dumps({**cards}))
    with LoopbackHub(tmp_path / "hub") as hub:
        assert hub.run_python(VALIDATE, tmp_path / "cards.json", home=tmp_path / "home") == "accepted\n"
        assert len(hub.requests("^POST /api/validate-yaml")) == len(cards)
        broken = {"broken": cards["export"].replace("license_name: ", "licence_name: ")}
        (tmp_path / "cards.json").write_text(json.dumps(broken))
        with pytest.raises(RuntimeError, match="broken: .*license_name"):
            hub.run_python(VALIDATE, tmp_path / "cards.json", home=tmp_path / "home")
