"""How much disk space a merge takes: told, and refused where there is less, before the long work begins."""

from pathlib import Path

from project.fit.memory_estimate import picture_bytes
from project.merging.calibration import Gathering
from project.merging.memory_plan import student_bytes
from project.merging.settings import Place, Settings
from project.methods import PictureCounts, Problem
from project.moments import PICTURES
from project.runtime import MemoryPlan
from project.runtime.space import present_bytes


def disk_needs(
    problem: Problem,
    settings: Settings,
    pictures: PictureCounts,
    gathering: Gathering,
    plan: MemoryPlan,
    place: Place,
    progress: Path | None,
    fits: int,
) -> dict[Path, int]:
    """Estimate what a merge is going to write, less what an interrupted run has left there already.

    Args:
        problem: The sources.
        settings: What to make of them.
        pictures: How many calibration pictures there will be.
        gathering: What is to be gathered.
        plan: What waits on disk.
        place: Where the merge runs.
        progress: Folder of its unfinished work; None for nowhere.
        fits: Bytes that methods keep of unfinished students.

    Returns:
        File or folder -> bytes.
    """
    needs: dict[Path, int] = {}
    if settings.statistics is not None and gathering.missing:
        stored = gathering.stored.path.stat().st_size if gathering.stored else 0
        needs[settings.statistics] = stored + gathering.file_bytes(gathering.missing)
    students = student_bytes(problem, settings)
    if progress is not None:
        waiting = 0
        if plan.spill:
            waiting = plan.estimate.whole - plan.estimate.least
            if PICTURES in settings.needs(problem.spec):
                waiting = max(waiting, picture_bytes(problem.spec, sum(pictures.local.values())))
        each = _passes(gathering, plan, settings) + waiting + fits + students
        needs[progress] = each * place.beside - present_bytes(progress)
    if place.students is not None:
        needs[place.students] = students - present_bytes(place.students)
    return needs


def _passes(gathering: Gathering, plan: MemoryPlan, settings: Settings) -> int:
    """Bytes of the files that passes leave, all but one that writes to the user's own; see ``Gathering.end``.

    Copies of unfinished passes are left out: without room for them, a merge goes on without them.
    """
    last_for_file = settings.statistics is not None and not plan.shelve
    return sum(gathering.file_bytes(share) for share in plan.shares[: len(plan.shares) - last_for_file])
