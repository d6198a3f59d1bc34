"""What a run says once, whatever the number of its processes."""

import logging

import pytest

from project.runtime.messages import RANKS, Heartbeat, first_process, tell, warn


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


def test_a_heartbeat_tells_how_far_it_is_but_seldom(caplog: pytest.LogCaptureFixture) -> None:
    seldom, often = Heartbeat("fitting: layer", 3, every=3600), Heartbeat("fitting: layer", 3, every=0)
    for _ in range(2):
        seldom.beat()
        often.beat()
    assert [record.getMessage() for record in caplog.records] == ["fitting: layer 1 of 3", "fitting: layer 2 of 3"]
