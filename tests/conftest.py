"""What all tests share."""

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from thinned import thin_out

# torch, and what imports it, is imported by those alone that run tests: the process that deals them out needs none.

# The same examples everywhere, few enough for the default suite; and those of `make fuzz`, others every time. A fixture
# of hypothesis' own rule, one for each example, is not what the tests of files want: they write over one file.
COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=25, derandomize=True, **COMMON)
settings.register_profile("fuzz", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile("few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands first: their files take longest, and one that is begun last keeps the other processes waiting."""
    thin_out(items)
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """What is there when the tests begin stays to the end: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Libraries that count at the end what they have not given back find it all."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """One thread: the tests' networks are small, and more threads than free cores make each other wait."""
    import torch

    torch.set_num_threads(int(os.environ.get("PLEAS_TEST_THREADS", "1")))


@pytest.fixture(autouse=True, scope="module")
def other_rounding(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where ``make test-rounding`` asks for it, sources and pictures are those of another rounding.

    A module that is ``EXACT`` compares pictures, or what comes of them, to the last bit with what the fixture does not
    reach: other processes, or the test's own arithmetic. It has only its sources' weights disturbed, which all read
    from files; and like other processes, which have one thread, it has no more.
    """
    import torch
    from disturbing import disturbance

    exact, threads = getattr(request.module, "EXACT", False), torch.get_num_threads()
    if exact:
        torch.set_num_threads(1)
    with nullcontext() if exact else disturbance():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def plain_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns where it is handed arguments while the process has its own, as pytest does."""
    monkeypatch.setattr("sys.argv", ["pleas"])


@pytest.fixture(scope="module")
def shown_once() -> Iterator[None]:
    """Of few calibration pictures many views are made by default: for whole commands, as many as there are pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("project.data.calibration.ENOUGH", 1)
        yield


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
