"""What processes find out together before they go on from files that each has kept for itself."""

from pathlib import Path

import pytest
from meeting import together

from project.errors import DataError
from project.runtime import Progress, World
from project.runtime.progress import taken_up_again, unfinished_work


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


def test_what_failed_is_not_called_interrupted(tmp_path: Path) -> None:
    assert unfinished_work(tmp_path) is None
    with pytest.raises(DataError), taken_up_again(tmp_path):
        raise DataError("a.png cannot\nbe read.")
    assert unfinished_work(tmp_path) == "a merge that failed (a.png cannot be read)"
    with pytest.raises(KeyboardInterrupt), taken_up_again(tmp_path):
        raise KeyboardInterrupt
    assert unfinished_work(tmp_path, "merge of others") == "an interrupted merge of others"
    with taken_up_again(tmp_path):
        (tmp_path / "result").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    with taken_up_again(None):
        pass


def test_only_what_was_kept_counts_as_other_work(tmp_path: Path) -> None:
    mine, theirs = Progress(tmp_path).below("merge", {"seed": 0}), Progress(tmp_path).below("merge", {"seed": 1})
    assert not mine.others
    mine.keep("layer", {})
    theirs.below("waiting").folder.mkdir(parents=True)
    assert not mine.others
    assert theirs.others
    theirs.keep("layer", {})
    assert mine.others
