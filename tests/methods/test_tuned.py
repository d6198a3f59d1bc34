"""The tuner: what is held out, what brute force would pick, and what is refused before anything is tried."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    DOMAINS,
    Case,
    estimate_case,
    make_problem,
    merge_case,
    message_of,
    moved,
    only,
    pictures,
    prepare_case,
    random_network,
    same_state,
)
from meeting import dealt, together
from torch import Tensor

from project.allocation import Budget
from project.errors import ConfigurationError, MergeError
from project.merging.students import fitted
from project.methods import (
    EMR,
    PCB,
    TIES,
    AdaMerging,
    Average,
    Concrete,
    Evidence,
    Fisher,
    MaTS,
    Merged,
    Method,
    Permutation,
    PLeaS,
    RegMean,
    TaskArithmetic,
    Tuned,
)
from project.methods.shared.matching import Matching
from project.methods.tuned import divided
from project.moments import PICTURES, UNITS
from project.runtime import Progress, World
from project.student import reestimate

SCALES = [0.0, 0.2, 0.5, 0.8, 1.2]
SIZES = (7, 8, 5)


def problem(mode: str = "shared", **others: Any) -> Case:
    """Two sources, each with three batches of its domain, whose labels are mostly what the source says."""
    base = random_network(1, 50)
    batches = [(d, pictures(n, 10 * i + k)) for i, d in enumerate(DOMAINS[:2]) for k, n in enumerate(SIZES)]
    sources = [moved(base, seed) for seed in range(2)]
    it = make_problem(sources, mode, batches=batches, base=base, **others)
    with torch.no_grad():
        labels = {d: [it.sources[it.owners[d]](one).argmax(1) for one in them] for d, them in it.pictures.items()}
    return replace(it, picture_labels=labels)


def rows(table: dict[str, list[Tensor]], domain: str, held: bool) -> Tensor:
    """Every fourth of twenty, or the others."""
    every = torch.cat(list(table[domain]))
    return every[3::4] if held else torch.cat([every[number : number + 3] for number in range(0, 20, 4)])


def judged(it: Case, made: Merged, criterion: str) -> float:
    """The criterion, written out again."""
    network, shown = copy.deepcopy(made.student.network), dict(it.pictures)
    used = [rows(shown, domain, False).split([6, 6, 3]) for domain in shown]  # type: ignore[arg-type]
    reestimate(network, [torch.cat(batches) for batches in zip(*used, strict=True)])
    found = []
    for domain in shown:
        x, columns = rows(shown, domain, True), it.labels.columns(domain)  # type: ignore[arg-type]
        with torch.no_grad():
            mine, theirs = network(x)[:, columns].softmax(1), it.sources[it.owners[domain]](x).softmax(1)
        if criterion == "accuracy":
            found.append((mine.argmax(1) == rows(dict(it.picture_labels), domain, True)).double())  # type: ignore[arg-type]
        elif criterion == "entropy":
            found.append(torch.distributions.Categorical(probs=mine).entropy().double())
        else:
            found.append(F.kl_div(mine.log(), theirs, reduction="none").sum(1).double())
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("criterion", ["entropy", "divergence", "accuracy"])
def test_it_picks_what_brute_force_picks(criterion: Any, mode: str) -> None:
    it = problem(mode)
    expected = [judged(it, only(TaskArithmetic(scale), it), criterion) for scale in SCALES]
    merged = only(Tuned(TaskArithmetic(), {"scale": SCALES}, criterion), it)
    tuned = merged.learned["tuned"]
    assert [one["scale"] for one in tuned["scores"]] == SCALES
    assert [one["score"] for one in tuned["scores"]] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert len(set(expected)) > 1
    best = expected.index(max(expected) if criterion == "accuracy" else min(expected))
    assert tuned["setting"] == {"scale": SCALES[best]}
    assert merged.name == "taskarithmetic-tuned-1.00"
    plain = only(TaskArithmetic(SCALES[best]), it)
    assert same_state(merged.student.state_dict(), plain.student.state_dict()), "as it comes, to be re-estimated later"
    assert not merged.settled
    curve = merged.curves[f"held-out {criterion}"]["all layers"]
    assert list(curve.values()) == [one["score"] for one in tuned["scores"]]


@pytest.mark.parametrize("mode", ["shared", "different"])
@pytest.mark.parametrize("criterion", ["entropy", "divergence", "accuracy"])
def test_domains_count_alike_however_many_pictures_they_have(criterion: Any, mode: str) -> None:
    it = problem(mode)
    merged = replace(only(TaskArithmetic(0.3), it), settled=True)
    method = Tuned(TaskArithmetic(), {"scale": [0.3]}, criterion)

    @torch.no_grad()
    def score(*numbers: int) -> float:
        times = dict(zip(DOMAINS, numbers, strict=False))
        shown = {domain: n * list(it.pictures[domain]) for domain, n in times.items()}
        labels = {domain: n * list(it.picture_labels[domain]) for domain, n in times.items()}
        return method.score(merged, it, it.evidence, Evidence(it.statistics, shown, labels), it.run)

    assert score(1, 5) == pytest.approx(score(1, 1))
    assert score(3, 1) == pytest.approx(score(1, 1))


def test_settings_of_a_matching_are_tuned() -> None:
    sources = [random_network(1, seed) for seed in range(2)]
    batches = [(domain, pictures(20, i)) for i, domain in enumerate(DOMAINS[:2])]
    it = make_problem(sources, batches=batches)
    grid = ["weights", {"by": "weights", "seed": 3}, {"alpha": 0.3}]
    merged = only(Tuned(Average(), {"align": grid}), it)
    scores = [one["score"] for one in merged.learned["tuned"]["scores"]]
    aligns: list[Any] = ["weights", Matching("weights", seed=3), Matching(alpha=0.3)]
    single = [only(Tuned(Average(), {"align": [align]}), it).learned["tuned"]["scores"][0]["score"] for align in aligns]
    assert scores == single
    assert merged.learned["tuned"]["setting"] == {"align": grid[scores.index(min(scores))]}
    (candidate,) = Tuned(Average(), {"align": [{"alpha": 0.3}]}).candidates
    assert candidate.options == Average(align=Matching(alpha=0.3)).options
    assert UNITS in Tuned(Average(), {"align": ["none", {"alpha": 0.3}]}).needs


def test_every_value_is_tried_with_every_other() -> None:
    it = problem()
    method = Tuned(TIES(trim="tensor"), {"keep": [0.2, 1.0], "scale": [0.5, 1.0, 1.5]})
    assert [(one.keep, one.scale, one.trim) for one in method.candidates] == [  # type: ignore[attr-defined]
        (keep, scale, "tensor") for keep in (0.2, 1.0) for scale in (0.5, 1.0, 1.5)
    ]
    merged = only(method, it)
    scores = [judged(it, only(candidate, it), "entropy") for candidate in method.candidates]
    assert merged.learned["tuned"]["setting"] == method.settings[scores.index(min(scores))]


def test_the_first_of_equals_is_taken() -> None:
    it = replace(problem(), base="mean")  # the mean, whatever the scale
    merged = only(Tuned(TaskArithmetic(), {"scale": [1.0, 0.5]}), it)
    assert merged.learned["tuned"]["setting"] == {"scale": 1.0}


class Broken(TaskArithmetic):
    """Task arithmetic, but NaN at some scales."""

    def vector(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        moved = super().vector(vectors, sizes)
        return moved * torch.nan if self.scale in (0.1, 0.9) else moved


@pytest.mark.parametrize("criterion", ["entropy", "divergence", "accuracy"])
def test_what_is_not_finite_never_wins(criterion: Any) -> None:
    it = problem()
    tuned = only(Tuned(Broken(), {"scale": [0.1, 0.5, 0.9, 0.4]}, criterion), it).learned["tuned"]
    expected = only(Tuned(TaskArithmetic(), {"scale": [0.5, 0.4]}, criterion), it).learned["tuned"]
    assert tuned["setting"] == expected["setting"]
    assert [one["score"] for one in tuned["scores"]][::2] == [None, None]
    assert [one["score"] for one in tuned["scores"]][1::2] == [one["score"] for one in expected["scores"]]
    with pytest.raises(MergeError, match=f"{criterion} on the pictures held out is not finite in any setting"):
        only(Tuned(Broken(), {"scale": [0.1, 0.9]}, criterion), it)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_what_is_held_out_is_kept_apart(share: float) -> None:
    it = problem()
    kept, held = divided(it.evidence, share, it.run)
    for table, mine, theirs in (
        (it.pictures, kept.pictures, held.pictures), (it.picture_labels, kept.picture_labels, held.picture_labels),
    ):  # fmt: skip
        for domain in DOMAINS[:2]:
            assert sum(map(len, theirs[domain])) == int(20 * share)
            assert all(len(one) for one in (*mine[domain], *theirs[domain]))
            both, every = torch.cat([*mine[domain], *theirs[domain]]), torch.cat(list(table[domain]))
            assert sorted(both.flatten(1).sum(1).tolist() if both.dim() > 1 else both.tolist()) == sorted(
                every.flatten(1).sum(1).tolist() if every.dim() > 1 else every.tolist()
            )
    for domain in DOMAINS[:2]:  # a picture and its label go the same way
        for x, y in zip(kept.pictures[domain], kept.picture_labels[domain], strict=True):
            assert torch.equal(it.sources[it.owners[domain]](x).argmax(1), y)


@pytest.mark.parametrize(("share", "size"), [(0.25, 2), (0.5, 2), (0.2, 3), (0.75, 4)])
def test_processes_hold_out_as_many_as_one(share: float, size: int) -> None:
    batches = [(domain, pictures(24, i)) for i, domain in enumerate(DOMAINS[:2])]
    it = make_problem([random_network(1, s) for s in range(2)], needs=(), batches=batches)

    def held(world: World) -> list[int]:
        local = dealt(it, world)
        return [sum(map(len, parts)) for parts in divided(local.evidence, share, local.run)[1].pictures.values()]

    counts = torch.tensor(together(size, held)).sum(0)
    assert counts.tolist() == [int(24 * share)] * 2


def test_methods_see_no_picture_that_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    it, seen = problem(), []
    kept, _ = divided(it.evidence, 0.25, it.run)

    def merge(self: Average, problem: Any, evidence: Evidence, run: Any, budgets: Any) -> Any:
        seen.append(evidence)
        return iter(())

    monkeypatch.setattr(Average, "merge", merge)
    assert list(merge_case(Tuned(Average(), {"align": ["none", "weights"]}), it, [1.0])) == []
    assert len(seen) == 2
    for given in seen:
        for domain in DOMAINS[:2]:
            mine = torch.cat(list(given.pictures[domain]))
            assert torch.equal(mine, torch.cat(list(kept.pictures[domain])))
            held = rows(dict(it.pictures), domain, True)  # type: ignore[arg-type]
            assert not any(torch.equal(one, other) for one in mine for other in held)


def test_methods_that_learn_or_settle_are_tuned_too() -> None:
    it = problem()
    kept = replace(it, **vars(divided(it.evidence, 0.25, it.run)[0]))
    merged = only(Tuned(AdaMerging(steps=3, rate=0.05), {"coefficients": ["task", "layer"]}), it)
    chosen = merged.learned["tuned"]["setting"]["coefficients"]
    alone = only(AdaMerging(chosen, steps=3, rate=0.05), kept)
    assert same_state(merged.student.state_dict(), alone.student.state_dict())
    assert {name: one for name, one in merged.learned.items() if name != "tuned"} == alone.learned
    assert set(merged.curves) == {"held-out entropy", "entropy", "coefficient"}
    settled = only(Tuned(EMR(), {"align": ["none"]}, "accuracy"), it)
    assert settled.settled
    assert settled.learned["tuned"]["scores"][0]["score"] > 0.7, "each named network is nearly its source"


def test_every_budget_is_tuned_by_itself() -> None:
    it = problem()
    method = Tuned(Permutation("weights"), {"separate": ["front", "back", "uniform"]}, "divergence")
    found = list(merge_case(method, it, [1.0, 1.4]))
    assert [one.name for one in found] == ["permutation-tuned-1.00", "permutation-tuned-1.40"]
    for merged, budget in zip(found, (1.0, 1.4), strict=True):
        scores = [one["score"] for one in merged.learned["tuned"]["scores"]]
        expected = [judged(it, next(iter(merge_case(one, it, [budget]))), "divergence") for one in method.candidates]
        assert scores == pytest.approx(expected, rel=1e-3)


def test_what_was_tuned_can_be_started_from() -> None:
    it, tuned = problem(), Tuned(TaskArithmetic(), {"scale": [0.5, 0.8]})
    method = MaTS("average", start=tuned.name, iterations=0)
    planned = replace(it, planned={tuned.name: tuned})
    prepare_case(method, planned, {"art": 8, "birds": 8}, [1.0])
    (_, first), (_, second) = fitted([tuned, method], it, it.evidence, it.run, [Budget(1.0)])
    for name, one in first.student.network.named_parameters():
        assert torch.equal(one, second.student.network.get_parameter(name)), name
    for other in (
        Tuned(Average(), {"align": ["none", "weights"]}),
        Tuned(Average(align="weights"), {"weights": [None]}),
    ):
        refused = replace(it, planned={tuned.name: other})
        with pytest.raises(ConfigurationError, match="whose units are matched in another way than by align 'none'"):
            prepare_case(method, refused, {"art": 8, "birds": 8}, [1.0])


def test_needs_are_those_of_all_settings() -> None:
    assert Tuned(TaskArithmetic(), {"scale": [1.0]}).needs == {PICTURES}
    mats = Tuned(MaTS(), {"estimate": ["gram", "kfac"], "start": ["ties", "average"]})
    assert mats.needs == MaTS("gram").needs | MaTS("kfac").needs | {PICTURES}
    assert mats.follows == {"ties"}, "the average is no method's"
    assert not mats.labelled
    assert Tuned(MaTS(), {"classes": ["sampled", "labels"]}).labelled
    assert Tuned(TaskArithmetic(), {"scale": [1.0]}, "accuracy").labelled


EVERY: list[Method] = [
    Average([1.0, 2.0], "weights"), TaskArithmetic(0.4), TIES(0.3, 1.5, "tensor"), PCB(0.2), EMR("weights"),
    Fisher("exact", [1.0, 2.0], 1e-3), RegMean(0.5, 1e-3), MaTS("gram", start="ties", iterations=3, watch=1),
    Permutation("weights", separate="back", step=2, seed=3), PLeaS("weights", fit="joint", weights={"art": 2.0}),
    AdaMerging("task", True, 0.3, clamp=False, norms="domain"), Concrete("learned", binarise=True, inner_rate=0.5),
    Tuned(TIES(), {"keep": [0.1, 0.3]}, "accuracy", 0.5, "mine"),
]  # fmt: skip


@pytest.mark.parametrize("method", EVERY, ids=lambda one: type(one).__name__)
def test_every_method_can_be_made_again_with_another_argument(method: Method, tmp_path: Path) -> None:
    again, other = method.changed(), method.changed(label="other")
    marks = [Progress(tmp_path).below("x", vars(one)).folder for one in (method, again, other)]
    assert marks[0] == marks[1] != marks[2], "known again after an interruption, by what it was made with"
    assert other.name == "other"
    assert again.options == method.options


def test_pictures_and_their_copies_are_planned_for() -> None:
    it, counts = problem(), {"art": 100, "birds": 20}
    method = Tuned(TaskArithmetic(), {"scale": [0.3, 0.5]})
    plain, found = estimate_case(TaskArithmetic(), it, counts, [1.0], 4), estimate_case(method, it, counts, [1.0], 4)
    kept = found.least - plain.least
    assert kept == 2 * 4 * sum(one.numel() for one in it.sources[0].parameters()), "the best student and the next"
    assert found.whole == plain.whole + kept + 2 * 120 * pictures(1, 0).numel() * 4


def test_settings_are_told_in_files() -> None:
    method = Tuned(TIES(keep=0.4, label="other"), {"scale": [0.5, 1.0]}, "divergence", label="mine")
    assert method.name == "mine"
    assert method.options == {
        "criterion": "divergence", "held_out": 0.25, "label": "mine", "method": "TIES", "keep": 0.4, "scale": 1.0,
        "trim": "global", "align": "none", "grid": {"scale": [0.5, 1.0]},
    }  # fmt: skip
    told = message_of(method, problem())
    assert told is not None
    assert told.startswith("mine judges 2 settings by divergence on pictures held out")
    assert "statistics" not in told
    assert "of which the statistics are too" in (message_of(Tuned(RegMean(), {"ridge": [0.1]}), problem()) or "")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tuned(TIES(), {}), "grid is empty; name arguments of TIES: keep, scale, trim, align"),
        (
            lambda: Tuned(TIES(), {"kept": [0.1]}),
            "grid names 'kept'; nearest: keep; arguments of TIES: keep, scale, trim, align",
        ),
        (lambda: Tuned(TIES(), {"label": ["a"]}), "grid names 'label'"),
        (lambda: Tuned(TIES(), {"keep": []}), r"grid gives \[\] for 'keep'; allowed: a list of values, one at least"),
        (lambda: Tuned(TIES(), {"keep": "0.1"}), "grid gives '0.1' for 'keep'"),  # type: ignore[dict-item]
        (lambda: Tuned(TIES(), {"keep": [0.2, 2.0]}), "keep is 2.0; allowed: above 0, up to 1"),
        (lambda: Tuned(TIES(), {"keep": [0.2, "much"]}), "grid holds {'keep': 'much'}, which ties does not take"),
        (lambda: Tuned(TIES(), {"align": [{"alfa": 1}]}), "align names 'alfa'; settings: by, similarity, alpha, seed"),
        (lambda: Tuned(TIES(), {"keep": [0.2]}, "loss"), "criterion is 'loss'; allowed: 'entropy', 'diverg"),  # type: ignore[arg-type]
        (lambda: Tuned(TIES(), {"keep": [0.2]}, held_out=1.0), "held_out is 1.0; allowed: above 0, below 1"),
    ],
)
def test_a_grid_is_checked_when_it_is_given(make: Callable[[], Method], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_what_cannot_be_tuned_is_refused_before_anything_is_tried() -> None:
    it, grid = problem(), {"scale": [0.5, 1.0]}
    with pytest.raises(ConfigurationError, match="which holds out 0 of the 3 calibration pictures of art"):
        prepare_case(Tuned(TaskArithmetic(), grid), it, {"art": 3, "birds": 8}, [1.0])
    with pytest.raises(ConfigurationError, match="method taskarithmetic needs base"):
        prepare_case(Tuned(TaskArithmetic(), grid), replace(it, base=None), {"art": 8}, [1.0])
    with pytest.raises(ConfigurationError, match=r"criterion .* is 'accuracy', but .* are of 'public'"):
        prepare_case(Tuned(TaskArithmetic(), grid, "accuracy"), it, {"public": 8}, [1.0])
    with pytest.raises(ConfigurationError, match="are of 'public', which has none"):
        prepare_case(Tuned(TaskArithmetic(), grid), problem("different"), {"public": 8}, [1.0])
    prepare_case(Tuned(TaskArithmetic(), grid, "divergence"), problem("different"), {"public": 8}, [1.0])
    with pytest.raises(MergeError, match="needs the labels of the calibration pictures"):
        only(Tuned(TaskArithmetic(), grid, "accuracy"), replace(it, picture_labels={}))
    few = replace(it, pictures={domain: [pictures(1, 0)] for domain in DOMAINS[:2]}, picture_labels={})
    with pytest.raises(MergeError, match="leaves some process no picture of 'art'"):
        only(Tuned(TaskArithmetic(), grid, held_out=0.99), few)


def test_processes_choose_alike() -> None:
    batches = [(domain, pictures(12, i)) for i, domain in enumerate(DOMAINS[:2])]
    base = random_network(1, 50)
    it = make_problem([moved(base, s) for s in range(2)], needs=(), batches=batches, base=base)

    def run(world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
        merged = only(Tuned(TaskArithmetic(), {"scale": SCALES}, "divergence", 0.5), dealt(it, world))
        return dict(merged.learned), merged.student.network.state_dict()

    (mine, one), (theirs, two) = together(2, run)
    assert mine == theirs
    assert same_state(one, two)
