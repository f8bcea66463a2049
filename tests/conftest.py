# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole test session: no network, no cache but a temporary one, one thread, no silent skips in CI.

The environment is set before anything imports a Hugging Face library, because those read it when they are imported.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from types import ModuleType

HUB_CACHE = tempfile.mkdtemp(prefix="zerostereo-tests-")
atexit.register(shutil.rmtree, HUB_CACHE, ignore_errors=True)
os.environ.update(
    HF_HUB_OFFLINE="1",  # a hidden download fails instead of passing
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=HUB_CACHE,
    HF_HUB_CACHE=os.path.join(HUB_CACHE, "hub"),
    HF_MODULES_CACHE=os.path.join(HUB_CACHE, "modules"),
)

import pytest  # noqa: E402
import torch  # noqa: E402

# Tensors in tests are tiny: a second thread costs more than it brings, and one thread repeats its sums exactly.
torch.set_num_threads(1)


def every_part_is_installed() -> bool:
    """Tell whether this run must not lack anything that could have been installed (CI=true, set by .ci/run)."""
    return os.environ.get("CI", "").lower() == "true"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def fail_instead_of_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that repeats its reason; an expected failure (xfail) is no skip."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nUnder CI=true only tests marked gpu may be skipped: install what is missing."


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true, fail every skipped test but those that need a GPU, which nobody can install."""
    report = yield
    if every_part_is_installed() and item.get_closest_marker("gpu") is None:
        fail_instead_of_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same where a whole file is skipped, as pytest.importorskip at its top does."""
    report = yield
    if every_part_is_installed():
        fail_instead_of_skip(report)
    return report


@pytest.fixture
def require() -> Callable[[str], ModuleType]:
    """Return a function that imports an optional module, or skips the test where it is not installed."""

    def require_module(module_name: str) -> ModuleType:
        reason = f"needs the module {module_name!r}, which is not installed"
        return pytest.importorskip(module_name, reason=reason, exc_type=ModuleNotFoundError)

    return require_module
