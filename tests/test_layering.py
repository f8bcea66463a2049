# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: five rules, read from the source of every file with ast and held against the whole tree.

1. pipeline_zerostereo.py imports the standard library, numpy, PIL, torch, diffusers and transformers; nothing of ours.
2. training/, datasets_builder/ and the scripts at the root import the pipeline file. training/pair_dataset.py alone
   imports datasets_builder/schema.py and mfs35k.py; datasets_builder/ imports nothing of training/.
3. No circle of imports; files with a main() are imported only by tests and benchmarks.
4. benchmarks/ and tests/ may import everything; nothing else imports them.
5. space/ imports nothing of ours.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = "pipeline_zerostereo"
PIPELINE_MAY_IMPORT = {"numpy", "PIL", "torch", "diffusers", "transformers"} | sys.stdlib_module_names
FOLDERS = ("training", "datasets_builder", "space", "benchmarks", "tests")
IMPORT_EVERYTHING = ("benchmarks", "tests")
SHARED_BUILDER_MODULES = {"datasets_builder.schema", "datasets_builder.mfs35k"}


def source_files(root: Path) -> dict[str, Path]:
    """Return every file that the rules speak of by its dotted module name."""
    paths = [*root.glob("*.py"), *(path for folder in FOLDERS for path in root.glob(f"{folder}/**/*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported_names(module: str, path: Path, tree: ast.Module) -> set[str]:
    """Return the dotted names that a file imports anywhere in it, relative ones resolved."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def has_main(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def owner(name: str, modules: dict[str, Path]) -> str | None:
    """Return the file of ours, or else the folder of ours, that an imported name belongs to."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        if candidate in modules or candidate in FOLDERS:
            return candidate
    return None


def broken_rule(importer: str, imported: str, mains: set[str]) -> str | None:
    """Return which rule forbids that one module of ours imports another, if any does."""
    layer, target = importer.split(".")[0], imported.split(".")[0]
    if layer in IMPORT_EVERYTHING:
        return None
    if target in IMPORT_EVERYTHING:
        return "rule 4: only benchmarks and tests import these"
    if layer == PIPELINE:
        return "rule 1: the pipeline file imports nothing of ours"
    if layer == "space":
        return None if target == layer else "rule 5: the Space imports nothing of ours"
    if imported in mains:
        return "rule 3: a file with a main() is imported only by tests and benchmarks"
    if importer == "training.pair_dataset" and imported in SHARED_BUILDER_MODULES:
        return None
    if target != PIPELINE and not (target == layer and layer in FOLDERS):
        return "rule 2: beside its own folder this imports the pipeline file only"
    return None


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return each circle that a walk along the imports meets, as "a -> b -> a"."""
    found, finished = [], set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in finished:
            for imported in sorted(graph.get(module, ())):
                walk(imported, [*trail, module])
            finished.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def violations(root: Path) -> list[str]:
    """Return one line for each import below root that breaks a rule."""
    modules = source_files(root)
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules.items()}
    mains = {module for module, tree in trees.items() if has_main(tree)}
    graph: dict[str, set[str]] = {}
    found = []
    for module, path in modules.items():
        graph[module] = set()
        for name in sorted(imported_names(module, path, trees[module])):
            ours = owner(name, modules)
            if ours is None:
                if module == PIPELINE and name.split(".")[0] not in PIPELINE_MAY_IMPORT:
                    found.append(f"{module} imports {name}: rule 1: not one of the libraries of the pipeline file")
                continue
            graph[module].add(ours)
            rule = broken_rule(module, ours, mains)
            if rule:
                found.append(f"{module} imports {ours}: {rule}")
    return found + [f"rule 3: circle {circle}" for circle in circles(graph)]


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source, encoding="utf-8")
    return root


def test_the_tree_keeps_the_rules():
    modules = source_files(ROOT)
    assert {PIPELINE, "synthesize", "training.procedural_scenes", "tests.test_layering"} <= modules.keys()
    assert violations(ROOT) == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path):
    source = "import a.b as c\nfrom d import e\ndef f():\n    from . import g; from .h import i; from ..j import k\n"
    path = plant(tmp_path, {"training/deep/file.py": source}) / "training/deep/file.py"
    names = imported_names("training.deep.file", path, ast.parse(source))
    assert names == {"a.b", "d.e", "training.deep.g", "training.deep.h.i", "training.j.k"}
    init = path.with_name("__init__.py")
    assert "training.deep.h.i" in imported_names("training.deep", init, ast.parse(source))


GOOD_TREE = {
    "pipeline_zerostereo.py": "import math\nimport torch\nfrom PIL import Image\nfrom diffusers import UNet\n",
    "synthesize.py": "import pipeline_zerostereo\ndef main(): pass\n",
    "training/run.py": "import accelerate\n",
    "training/networks/layers.py": "from training.run import resume\n",
    "training/networks/raft.py": "from .layers import block\nfrom .. import run\n",
    "training/train_depth.py": "from training import run\nimport pipeline_zerostereo\ndef main(): pass\n",
    "training/pair_dataset.py": "from datasets_builder import schema, mfs35k\n",
    "datasets_builder/schema.py": "import datasets\n",
    "datasets_builder/mfs35k.py": "from pipeline_zerostereo import forward_warp\n",
    "benchmarks/warp.py": "import synthesize\nfrom training.train_depth import main\n",
    "tests/test_all.py": "import scipy, benchmarks.warp, space.app\nfrom datasets_builder.schema import decode\n",
    "space/app.py": "import gradio\nfrom space.pictures import wiggle\n",
    "space/pictures.py": "import numpy\n",
}


def test_a_good_tree_is_accepted(tmp_path: Path):
    plant(tmp_path, GOOD_TREE)
    assert len(source_files(tmp_path)) == len(GOOD_TREE)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("pipeline_zerostereo.py", "def f():\n    import scipy.ndimage\n", "imports scipy.ndimage: rule 1"),
        ("pipeline_zerostereo.py", "from training.run import resume\n", "imports training.run: rule 1"),
        ("pipeline_zerostereo.py", "import synthesize\n", "imports synthesize: rule 1"),
        ("synthesize.py", "from training import run\n", "imports training.run: rule 2"),
        ("training/run.py", "import datasets_builder.schema\n", "imports datasets_builder.schema: rule 2"),
        ("training/pair_dataset.py", "from datasets_builder import plan\n", "imports datasets_builder: rule 2"),
        ("datasets_builder/schema.py", "from training.run import resume\n", "imports training.run: rule 2"),
        ("training/run.py", "from .train_depth import main\n", "imports training.train_depth: rule 3"),
        (
            "training/run.py",
            "from training.networks import raft\n",
            "circle training.run -> training.networks.raft",
        ),
        ("training/run.py", "import training.run\n", "rule 3: circle training.run -> training.run"),
        ("training/run.py", "from benchmarks import warp\n", "imports benchmarks.warp: rule 4"),
        ("space/app.py", "def f():\n    import tests.test_all\n", "imports tests.test_all: rule 4"),
        ("space/app.py", "from pipeline_zerostereo import forward_warp\n", "imports pipeline_zerostereo: rule 5"),
    ],
)
def test_a_bad_import_is_found(tmp_path: Path, name: str, source: str, message: str):
    plant(tmp_path, GOOD_TREE | {name: source})
    found = violations(tmp_path)
    assert any(message in line for line in found), found
