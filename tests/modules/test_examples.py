"""Examples against a loop over pictures, in one process and in several."""

from pathlib import Path

import pytest
import torch

from project.modules.examples import Examples


@pytest.mark.parametrize("processes", [1, 3])
def test_they_are_the_first_of_their_class_in_any_batches(processes: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (60,))
    right = {name: torch.rand(60) < 0.6 for name in ("one", "two", "student")}
    samples = {"art": [(Path(f"{place}.png"), int(label)) for place, label in enumerate(labels)]}
    for process in range(processes):
        mine = range(60)[process::processes]
        examples = Examples({"art": "one", "cars": "two"})
        for batch in (mine[:3], mine[3:11], mine[11:]):
            places = list(batch)
            examples.update("art", labels[places], {name: told[places] for name, told in right.items()})
            examples.update("birds", labels[places], {name: told[places] for name, told in right.items()})
        expected: dict[str, dict[int, Path]] = {"two": {}, "student": {}}
        for name, known in expected.items():
            for place in mine:
                if right["one"][place] and not right[name][place]:
                    known.setdefault(int(labels[place]), samples["art"][place][0])
        found = examples.paths(samples, process, processes)
        assert found == {name: {"art": known} for name, known in expected.items()}
        examples.reset()
        assert not examples.paths(samples, process, processes)


def test_without_the_source_there_are_none() -> None:
    examples = Examples({"art": "one"})
    examples.update("art", torch.tensor([0]), {"student": torch.tensor([False])})
    examples.update("art", torch.tensor([0]), {"one": torch.tensor([True])})
    assert not examples.places
