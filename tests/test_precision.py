"""Moments are sums of float32 products in float64, whatever precision the networks run in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_problem, merge_case, random_network, resnet, same_state
from lightning.pytorch import Trainer
from torch import Tensor, nn

from project.callbacks import MergeCallback
from project.data import DomainDataModule, Shapes
from project.errors import ConfigurationError
from project.merging import SourceFile
from project.methods import PLeaS
from project.modules import MergeModule
from project.moments import Moment, Statistics, cross_moment, layer_moment, unit_columns
from project.moments.correlations import CorrelationMoment
from project.moments.layer import UnfoldedMoment

pytestmark = pytest.mark.usefixtures("shown_once")

DOMAINS = ("clipart", "sketch")


@contextmanager
def a_step_in_bfloat16() -> Iterator[None]:
    """What Lightning wraps steps in, of both kinds at once: autocast, and another default type."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(20, 5, 3, padding=1), CorrelationMoment),
        (nn.Conv2d(20, 5, 2, stride=2), UnfoldedMoment),
        (nn.Linear(20, 5), UnfoldedMoment),
    ],
)
def test_the_same_activations_give_the_same_totals(layer: nn.Module, kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = isinstance(layer, nn.Linear)
    shape = (30, 20) if linear else (30, 20, 8, 8)
    out = layer(torch.zeros(shape)).shape
    values = [torch.randn(shape, generator=generator).bfloat16() for _ in range(2)]
    targets = torch.randn(out, generator=generator).bfloat16()

    def totals(*given: Tensor) -> list[Tensor]:
        inputs, wanted = given[:2], given[2]
        moment = layer_moment(layer, 40, (1, 1) if linear else (8, 8), constant=True)
        assert isinstance(moment, kind)
        moment.read(inputs)
        units = Moment(41)
        units.update(unit_columns(inputs))
        cross = cross_moment(wanted, inputs[0], layer, constant=True)
        return [*moment.totals, moment.sum(), units.sum(), cross]

    plain = totals(*(one.float() for one in (*values, targets)))
    with a_step_in_bfloat16():
        found = totals(*values, targets)
    assert [one.dtype for one in found] == [torch.float64] * (len(found) - 1) + [torch.float32]
    assert all(map(torch.equal, found, plain))


def test_a_fit_inside_autocast_solves_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the networks compute is rounded: nothing that is solved is."""
    factorised: list[torch.dtype] = []
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: (factorised.append(m.dtype), factorise(m))[1])
    problem = make_problem([random_network(3, weights) for weights in (0, 1)])
    (plain,) = merge_case(PLeaS(), problem, [1.3])
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = merge_case(PLeaS(), problem, [1.3])
    assert set(factorised) == {torch.float64}
    for name, fit in plain.layers.items():
        assert rounded.layers[name]["residual_after"] == pytest.approx(fit["residual_after"], rel=0.1, abs=0.02), name
    assert all(parameter.dtype == torch.float32 for parameter in rounded.student.parameters())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sources and drawn pictures."""
    folder = tmp_path_factory.mktemp("precision")
    for seed, domain in enumerate(DOMAINS):
        torch.save(resnet("resnet8", seed, 12).state_dict(), folder / f"{domain}.pth")
    return folder


def merged(place: Path, precision: Any) -> tuple[MergeModule, Statistics]:
    """A merge in a real trainer, and what it gathered."""
    sets = Shapes(place / "data", size=16, train_per_class=2, test_per_class=1, domains=list(DOMAINS))
    sets.prepare()
    data = DomainDataModule(sets, image_size=16, batch_size=16, validation_fraction=0)
    files = [SourceFile(place / f"{domain}.pth") for domain in DOMAINS]
    methods = [PLeaS(fit="joint")]
    module = MergeModule(files, methods)
    module.prepare(data)
    trainer = Trainer(
        callbacks=[MergeCallback()], precision=precision, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    while not module.finished:
        trainer.validate(module, dataloaders=data.calibration_dataloader(), verbose=False)
    assert module.engine.gathering.statistics is not None
    return module, module.engine.gathering.statistics


def test_a_trainer_in_mixed_precision_leaves_moments_and_sources_alone(place: Path) -> None:
    """On a CPU Lightning runs 16-mixed as bf16-mixed."""
    read: set[torch.dtype] = set()
    waiting: set[torch.dtype] = set()
    shadows: dict[int, tuple[Any, Any]] = {}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for kind in (CorrelationMoment, UnfoldedMoment):

            def watched(self: Any, values: list[Tensor], plain: Any = kind.read) -> None:
                """Gather the same activations a second time, as float32 and without autocast."""
                plain(self, values)
                read.update(one.dtype for one in values)
                waiting.update(one.dtype for one in self._pending)
                shadow = shadows.setdefault(id(self), (self, self.__class__.__new__(self.__class__)))[1]
                if not shadow.__dict__:
                    fresh = {"_pending": [], "_totals": [torch.zeros_like(one) for one in self._totals], "count": 0}
                    shadow.__dict__.update({**self.__dict__, **fresh})
                with torch.autocast("cpu", enabled=False):
                    plain(shadow, [one.float() for one in values])

            patch.setattr(kind, "read", watched)
        module, rounded = merged(place, "bf16-mixed")
    assert torch.bfloat16 in read, "the sources did run in half precision"
    assert waiting <= {torch.float32}
    gathered = [moment for one in rounded.layers.values() for moment in one.values()]
    assert len(shadows) == len(gathered)
    for moment, shadow in shadows.values():
        assert torch.equal(moment.sum(), shadow.sum()), "exactly what float32 makes of the same activations"
    _, exact = merged(place, "32-true")
    for mine, theirs in zip(rounded.moments(), exact.moments(), strict=True):
        assert {total.dtype for total in mine.totals} == {torch.float64}
        assert mine.count == theirs.count
        assert torch.linalg.norm(mine.sum() - theirs.sum()) < 2**-6 * torch.linalg.norm(theirs.sum())
    for domain, source in zip(DOMAINS, module.engine.sources, strict=True):
        state = torch.load(place / f"{domain}.pth", weights_only=True)
        assert same_state({name: source.network.state_dict()[name] for name in state}, state), "bit for bit"
    dtypes = {one.dtype for made in module.merged for one in made.student.parameters()}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_trainer_that_would_convert_the_sources_is_refused(place: Path, precision: str) -> None:
    with pytest.raises(ConfigurationError, match=f"precision is '{precision}', which converts the sources' weights"):
        merged(place, precision)
