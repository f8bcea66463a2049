# SPDX-License-Identifier: Apache-2.0
"""What the documents say about the repository is true: commands, file tree, pins, licences of the photographs."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import PIL.Image
import pytest
from huggingface_hub import ModelCard, ModelCardData

from pipeline_zerostereo import ZeroStereoPipelineOutput

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("training", "datasets_builder", "space", "benchmarks", "tests")
DOCUMENTS = [
    *(ROOT / "README.md", ROOT / "model_card.md"),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("weights/*/README.md")),
]


def code_blocks(markdown: str, language: str | None = None) -> list[str]:
    """Return the text of each fenced block, or of those marked with a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if language in (None, name)]


def code(markdown: str) -> str:
    """Return everything that a document sets as code, in blocks or inline."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*code_blocks(markdown), *inline])


def make_targets(makefile: str) -> set[str]:
    phony = re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    return set(phony[1].split()) if phony else set()


def named_targets(markdown: str) -> set[str]:
    return set(re.findall(r"^\s*(?:\$ )?make ([a-z][\w-]*)", code(markdown), re.MULTILINE))


def named_scripts(markdown: str) -> set[str]:
    """Return the path of each script of ours that a command runs, by file or with -m (also through a launcher)."""
    text = code(markdown)
    files = re.findall(r"\bpython3? ([\w./-]+\.py)\b", text)
    modules = re.findall(rf"-m ((?:{'|'.join(SOURCE_FOLDERS)})[\w.]*)", text)
    return set(files) | {module.replace(".", "/") + ".py" for module in modules}


def tree_files(markdown: str) -> set[str]:
    """Return the paths named in the file tree: the block that begins with the pipeline file.

    A line is names, separated by ", ", then two spaces or more, then a comment. A name that ends in / opens a folder
    for the deeper lines below it; a line that only goes on with the comment above is indented by more than 20.
    """
    block = next(text for text in code_blocks(markdown) if text.startswith("pipeline_zerostereo.py"))
    found, folders = set(), []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent > 20:
            continue
        folders = [(depth, name) for depth, name in folders if depth < indent]
        prefix = "".join(name for _, name in folders)
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        found.update(prefix + name for name in names)
        if names[-1].endswith("/"):
            folders.append((indent, names[-1]))
    return found


def requirement_lines(path: Path) -> list[str]:
    lines = (line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def source_files() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for folder in SOURCE_FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    assert named_targets(text) <= make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert [script for script in sorted(named_scripts(text)) if not (ROOT / script).is_file()] == []
    for block in code_blocks(text, "python"):
        ast.parse(block)


def test_readme_shows_its_two_commands_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"demo", "test"} <= named_targets(text)
    assert text.index("make demo") < text.index("make test") < text.index("pipeline_zerostereo.py  ")


def test_file_tree_of_the_readme_is_the_tree():
    named = tree_files((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    sources = {path.relative_to(ROOT).as_posix() for path in source_files() if path.name != "__init__.py"}
    assert {name for name in sources if not name.startswith("tests/")} - named == set()


def test_links_of_documents_lead_to_files():
    for document in [*DOCUMENTS, ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "{{" not in target and not target.startswith(("http://", "https://", "mailto:")):
                assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_card_template_renders_to_a_card_of_the_hub():
    template = (ROOT / "model_card.md").read_text(encoding="utf-8")
    names = set(re.findall(r"{{ (\w+) }}", template)) - {"card_data"}
    described = re.search(r"The other names are Markdown: ([\w, ]+)\.", template)
    assert described and set(described[1].split(", ")) == names
    data = ModelCardData(license="apache-2.0", library_name="diffusers", pipeline_tag="image-to-image")
    values = {name: f"<the {name}>" for name in names}
    card = ModelCard.from_template(data, template_path=str(ROOT / "model_card.md"), **values)
    assert card.content.startswith("---\n") and card.data.to_dict() == data.to_dict()
    assert all(value in card.text for value in values.values())
    assert "{{" not in card.content and "{#" not in card.content


def test_requirements_are_exact_pins():
    paths = sorted(ROOT.glob("requirements*.txt"))
    assert {"requirements.txt", "requirements-training.txt", "requirements-dev.txt"} <= {path.name for path in paths}
    for path in paths:
        for line in requirement_lines(path):
            if line.startswith("-r "):
                assert (ROOT / line.removeprefix("-r ")).is_file(), f"{path.name}: {line}"
            else:
                assert re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[\w.!]+", line), f"{path.name}: {line} is no exact pin"


def test_nothing_needs_torchvision():
    """A torchvision that does not fit torch keeps diffusers and transformers from importing."""
    for path in sorted(ROOT.glob("requirements*.txt")):
        assert not [line for line in requirement_lines(path) if line.startswith("torchvision")], path.name
    pattern = re.compile(r"^\s*(?:import|from) torchvision", re.MULTILINE)
    assert [path for path in source_files() if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_every_source_file_names_its_licence_and_says_what_it_is():
    paths = source_files()
    assert ROOT / "pipeline_zerostereo.py" in paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        first = text.removeprefix("#!/usr/bin/env python3\n").split("\n", 1)[0]
        assert first == "# SPDX-License-Identifier: Apache-2.0", path
        assert ast.get_docstring(ast.parse(text)), path


def test_every_photograph_has_source_author_and_licence():
    photographs = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in {".png", ".jpg", ".jpeg"}}
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", (ROOT / "examples" / "README.md").read_text("utf-8"), re.MULTILINE)
    assert photographs and photographs == {name for name, _ in rows}
    for name, row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == 5 and all(cells), name
        assert cells[-1] in {"CC0", "public domain"}, name


DOCUMENT = """
Type `make demo`, or
```bash
make test PHOTO=a.png
python synthesize.py a.png --output out
accelerate launch -m training.train_depth --steps 3
```
or make do. Run `python -m benchmarks.warp`.
```
pipeline_zerostereo.py  the method
                              and the pipeline
training/
  run.py, loss.py       shared
  networks/
    raft.py             a network
tests/                  tests
```
"""


def test_readers_of_documents_see_what_is_there():
    assert named_targets(DOCUMENT) == {"demo", "test"}
    assert named_scripts(DOCUMENT) == {"synthesize.py", "training/train_depth.py", "benchmarks/warp.py"}
    assert tree_files(DOCUMENT) == {
        "pipeline_zerostereo.py",
        "training/",
        "training/run.py",
        "training/loss.py",
        "training/networks/",
        "training/networks/raft.py",
        "tests/",
    }
    assert make_targets(".PHONY: help demo\nhelp:\n") == {"help", "demo"}


@pytest.mark.slow
def test_examples_of_the_readme_run_as_printed(tmp_path: Path):
    """In a process of its own, as somebody would paste them: a view on disk, and a line for each output."""
    for name in ("weights", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    example = "\n".join(code_blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python"))
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with PIL.Image.open(tmp_path / "right.png") as right:
        assert right.size == (600, 400)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert set(names) == {field.name for field in fields(ZeroStereoPipelineOutput)} - {"target_view"}
