"""What processes find out together before they go on from files that each has kept for itself."""

from pathlib import Path

import pytest
from meeting import together

from project.runtime import Progress, World


def test_alone_everything_is_alike(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    assert progress.alike("layers")
    assert progress.everywhere(True)
    assert not progress.everywhere(False)


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_learn_of_one_whose_text_is_another(size: int, tmp_path: Path) -> None:
    same = together(size, lambda world: Progress(tmp_path, world).alike("layers"))
    assert same == [True] * size
    for odd in range(size):
        texts = ["units" if rank == odd else "layers" for rank in range(size)]
        answers = together(size, lambda world, texts=texts: Progress(tmp_path, world).alike(texts[world.rank]))
        assert answers == [False] * size


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_file_that_one_process_lacks_counts_for_none(lacking: int, tmp_path: Path) -> None:
    def recalled(world: World) -> list[object]:
        progress = Progress(tmp_path / f"{lacking}" / str(world.rank), world)
        progress.keep("whole", {"layers": 3})
        if world.rank != lacking:
            progress.keep("part", {"layers": 2})
        return [progress.recall("whole"), progress.recall("part")]

    assert together(2, recalled) == [[{"layers": 3}, None]] * 2
