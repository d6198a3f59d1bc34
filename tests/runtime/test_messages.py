"""What a run says once, whatever the number of its processes."""

import logging

import pytest

from project.runtime.messages import RANKS, first_process, tell, warn


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


def test_the_only_process_speaks(caplog: pytest.LogCaptureFixture) -> None:
    tell("gathered")
    assert caplog.record_tuples == [("project", logging.INFO, "gathered")]
    with pytest.warns(UserWarning, match="^few pictures$") as shown:
        warn("few pictures")
    assert shown[0].filename == __file__, "a warning is of who asked for it"


@pytest.mark.parametrize("name", RANKS)
def test_of_several_processes_the_first_speaks(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, "1")
    tell("gathered")
    warn("few pictures")  # an error under the tests' filters, were it issued
    assert not caplog.records
    assert not first_process()
    monkeypatch.setenv(name, "0")
    assert first_process()
