# SPDX-License-Identifier: Apache-2.0
"""The session is offline with a cache of its own, and under CI=true a missing part fails instead of being skipped."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from huggingface_hub import constants

PLANTED_TESTS = """
import pytest

def test_required(require): require("no_such_module")
def test_skipped(): pytest.skip("no reason worth the name")
@pytest.mark.gpu
def test_on_gpu(): pytest.skip("no such card")
@pytest.mark.xfail
def test_expected_failure(): raise RuntimeError
def test_passes(): pass
"""
PLANTED_FILE_SKIP = 'import pytest\npytest.importorskip("no_such_module")\ndef test_never_seen(): pass\n'


def test_session_is_offline_with_a_cache_of_its_own():
    assert constants.HF_HUB_OFFLINE
    for folder in (constants.HF_HOME, constants.HF_HUB_CACHE, os.environ["HF_MODULES_CACHE"]):
        assert "zerostereo-tests-" in folder
        assert not Path(folder).is_relative_to(Path.home() / ".cache")
    assert torch.get_num_threads() == 1


def test_require_returns_the_module(require: Callable[[str], ModuleType]):
    assert require("fractions").Fraction(3, 6).denominator == 2


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ("", {"passed": 1, "skipped": 4, "xfailed": 1}),
        ("true", {"passed": 1, "failed": 2, "skipped": 1, "xfailed": 1, "error": 1}),
    ],
)
def test_skips_fail_under_ci(tmp_path: Path, ci: str, expected: dict[str, int]):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_planted.py").write_text(PLANTED_TESTS, encoding="utf-8")
    (tmp_path / "test_planted_file.py").write_text(PLANTED_FILE_SKIP, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"CI": ci}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    words = run.stdout.strip().splitlines()[-1].split(" in ")[0].replace(",", "").split()
    assert dict(zip(words[1::2], map(int, words[::2]), strict=True)) == expected, run.stdout + run.stderr
    assert run.returncode == (1 if ci else 0)
    assert run.stdout.count("Under CI=true only tests marked gpu") >= (3 if ci else 0)
