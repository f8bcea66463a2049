# SPDX-License-Identifier: Apache-2.0
"""The Makefile installs what a target needs, once, and again after an interruption or a changed requirement.

An interpreter that only writes down how it is called stands in for Python, so nothing is installed here.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDER = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" pip "*requirements.txt) [ ! -e "{log}.broken" ] ;;
esac
"""


class Checkout:
    """A folder with the Makefile and the requirements in which make runs with the recording interpreter."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "calls.log"
        for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
            shutil.copy(path, folder)
        self.interpreter = folder / "recorder"
        self.interpreter.write_text(RECORDER.format(log=self.log), encoding="utf-8")
        self.interpreter.chmod(0o755)

    def make(self, *arguments: str, succeeds: bool = True) -> list[str]:
        """Run make and return how it called the interpreter."""
        self.log.write_text("", encoding="utf-8")
        # Only PATH: variables of a make that runs these tests must not reach this one.
        command = ["make", f"PYTHON={self.interpreter}", *arguments]
        run = subprocess.run(
            command, cwd=self.folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
        )
        assert (run.returncode == 0) == succeeds, run.stdout + run.stderr
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call.split()[-1] for call in calls if " pip install " in call]


def test_demo_installs_only_what_it_needs_and_only_once(checkout: Checkout):
    calls = checkout.make("demo", "PHOTO=a cat.png")
    assert installs(calls) == ["requirements.txt"]
    assert calls[-1] == "synthesize.py a cat.png --output out --disparity-scale 0.06 --overwrite"
    assert checkout.make("demo", "PHOTO=a cat.png") == calls[-1:]
    assert checkout.make("demo", "PHOTO=a $x.png")[-1].startswith("synthesize.py a $x.png --output")


def test_demo_runs_on_an_example_of_its_own(checkout: Checkout):
    photo = checkout.make("demo")[-1].split()[1]
    assert (ROOT / photo).is_file()


@pytest.mark.parametrize(("target", "selection"), [("test", []), ("quick", ["-m", "not slow"])])
def test_tests_install_the_tools_once_and_check_before_they_run(checkout: Checkout, target: str, selection: list[str]):
    checkout.make("demo")
    assert installs(checkout.make(target)) == ["requirements-dev.txt"]
    calls = checkout.make(target, "PYTEST_ARGS=--last-failed")
    assert [call.split()[1] for call in calls] == ["ruff", "ruff", "basedpyright", "pytest"]
    assert " ".join([*selection, "--last-failed"]) in calls[-1]
    assert ("not slow" in calls[-1]) == bool(selection)


def test_an_interrupted_install_is_done_again(checkout: Checkout):
    broken = Path(f"{checkout.log}.broken")
    broken.touch()
    calls = checkout.make("demo", succeeds=False)
    assert installs(calls) == ["requirements.txt"]
    assert not any("synthesize.py" in call for call in calls)
    broken.unlink()
    assert installs(checkout.make("demo")) == ["requirements.txt"]
    assert installs(checkout.make("demo")) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("requirements.txt", ["requirements.txt", "requirements-dev.txt"]),
        ("requirements-training.txt", ["requirements-dev.txt"]),
        ("requirements-extras.txt", ["requirements-dev.txt"]),
        ("requirements-dev.txt", ["requirements-dev.txt"]),
    ],
)
def test_a_changed_requirement_is_installed(checkout: Checkout, changed: str, expected: list[str]):
    checkout.make("lint")
    stamp = (checkout.folder / ".venv" / ".installed-dev").stat().st_mtime_ns
    os.utime(checkout.folder / changed, ns=(stamp + 1, stamp + 1))
    assert installs(checkout.make("lint")) == expected


def test_pip_arguments_and_folder_of_the_environment_can_be_chosen(checkout: Checkout):
    calls = checkout.make("demo", "PIP_ARGS=--find-links wheels", "VENV=elsewhere", "OUT=results")
    assert "-m venv elsewhere" in calls
    assert "-m pip install --find-links wheels -r requirements.txt" in calls
    assert calls[-1].endswith("--output results --disparity-scale 0.06 --overwrite")
    assert not (checkout.folder / ".venv").exists()


def test_environments_apart_are_made_once_and_anew_when_their_list_changes(checkout: Checkout):
    assert installs(checkout.make("venvs")) == ["requirements-minimal.txt", "requirements-oldest.txt"]
    assert checkout.make("venvs") == []
    (checkout.folder / ".venv-oldest" / "left-over").touch()
    stamp = (checkout.folder / ".venv-oldest" / ".installed").stat().st_mtime_ns
    os.utime(checkout.folder / "requirements-oldest.txt", ns=(stamp + 1, stamp + 1))
    calls = checkout.make("venvs", "PIP_ARGS=--no-index")
    assert calls[1:] == ["-m venv .venv-oldest", "-m pip install --no-index -r requirements-oldest.txt"]
    assert not (checkout.folder / ".venv-oldest" / "left-over").exists()


def test_clean_leaves_the_checkout_as_it_was(checkout: Checkout):
    before = {path.name for path in checkout.folder.iterdir()}
    checkout.make("demo")
    checkout.make("venvs")
    (checkout.folder / "out").mkdir()
    (checkout.folder / "training" / "__pycache__").mkdir(parents=True)
    checkout.make("clean")
    assert {path.name for path in checkout.folder.iterdir()} == before | {"training", checkout.log.name}
    assert not any((checkout.folder / "training").iterdir())


def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony
    environment = {"PATH": os.environ["PATH"]}
    listed = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) ", listed, re.MULTILINE) == phony[1].split()
