"""Coefficients learned by a trainer: the same as in a merge, in a file that is a student, and what is refused."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from descent import AdaMergingByDescent, ConcreteByDescent
from helpers import budgets_of, close, gathered, permuted_copy, resnet, same_state
from lightning.pytorch import Trainer
from torch import Tensor

from project.data import DomainDataModule, Shapes, UnlabelledDataModule
from project.errors import ConfigurationError
from project.methods import AdaMerging, Concrete, Evidence, Run, TaskArithmetic
from project.methods.shared import Learned
from project.methods.shared.aligned import Space
from project.methods.shared.blend import Blend
from project.methods.shared.entropy import Objective
from project.modules import CoefficientModule, MergeModule
from project.moments import UNITS
from project.runtime import ALONE
from project.student import Student, load_source, load_student
from project.symmetry import trace

DOMAINS = ["clipart", "sketch"]
# Nothing is held out for validation here, unless a test asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")


class Place:
    """Two sources of one base in files, and drawn pictures of both domains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base.pth"
        network = resnet("resnet8", 0, 12)
        torch.save(network.state_dict(), self.base)
        self.sources = [folder / f"{domain}.pth" for domain in DOMAINS]
        for seed, path in enumerate(self.sources):
            source, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for one in source.parameters():
                    one += 0.1 * torch.randn(one.shape, generator=generator)
            torch.save(source.state_dict(), path)

    def data(self, kind: type[DomainDataModule] = UnlabelledDataModule, **options: Any) -> DomainDataModule:
        sets = Shapes(self.folder / "data", size=16, train_per_class=2, test_per_class=1)
        default = {"domains": DOMAINS, "image_size": 16, "batch_size": 12, "augment": False, "validation_fraction": 0}
        default["calibration_views"] = 1
        return kind(sets, **default | options)

    def module(self, method: Learned, **options: Any) -> CoefficientModule:
        return CoefficientModule(options.pop("sources", self.sources), options.pop("base", str(self.base)), method)

    def trainer(self, **options: Any) -> Trainer:
        torch.manual_seed(0)  # of the order in which batches come
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        default = {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "log_every_n_steps": 1}
        return Trainer(default_root_dir=self.folder, **quiet | default | options)  # type: ignore[arg-type]

    def student(self, name: str) -> Student:
        return load_student(self.folder / "students" / f"{name}-1.00.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("coefficients"))
    place.data().prepare_data()
    return place


def rows(pictures: Iterable[Tensor]) -> list[list[float]]:
    """Pictures whatever their order."""
    return sorted(torch.cat(list(pictures)).flatten(1).tolist())


@pytest.mark.parametrize(
    "method",
    [
        AdaMergingByDescent(rate=0.1, batch=24, steps=4),
        AdaMergingByDescent("task", plus=True, rate=0.01, batch=24, steps=4),
        ConcreteByDescent(rate=100, batch=24, steps=4),
    ],
    ids=["adamerging", "adamerging-plus", "concrete"],
)
def test_a_fit_learns_what_a_merge_learns(place: Place, method: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same batches, each of all pictures in the order that the fit draws.

    In another order sums are rounded otherwise, and a unit that is 0 but for rounding is above it in one of them alone:
    its whole gradient is then missing in the other. In one order both do the same, and what is bounded is rounding.
    """
    module, step, batches = place.module(method), method.step, []

    def noted(blend: Blend, objective: Objective, batch: Mapping[str, Tensor], *others: Any) -> dict[str, float]:
        batches.append(dict(batch))
        return step(blend, objective, batch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(method, "step", noted)
        place.trainer(max_epochs=4).fit(module, datamodule=place.data(batch_size=24))
    found = place.student(method.name)
    assert len(batches) == 4
    merge = MergeModule(place.sources, [method], base=str(place.base))
    data = place.data(DomainDataModule, batch_size=24)
    problem = merge.prepare(data).problem
    pictures = {d: [batch[d] for batch in data.calibration_dataloader()] for d in DOMAINS}
    assert all(rows([batch[d]]) == rows(pictures[d]) for batch in batches for d in DOMAINS)
    monkeypatch.setattr("project.methods.shared.learned.Draws", lambda *_: iter(batches))
    (made,) = method.merge(problem, Evidence(pictures=pictures), Run(), budgets_of(1.0))
    (start,) = TaskArithmetic(method.scale).merge(problem, Evidence(), Run(), budgets_of(1.0))
    for name, _ in made.student.network.named_parameters():
        mine, theirs, before = (
            student.network.get_parameter(name).detach() for student in (found, made.student, start.student)
        )
        # Weights are kept to 1e-7 of themselves: that much on each side, and a thousandth of the way learned.
        bound = 1e-3 * float((theirs - before).norm()) + 1e-6 * float(theirs.norm())
        assert float((mine - theirs).norm()) <= bound, name
        assert float((theirs - before).norm()) > 1e-5 * float(theirs.norm()), name
    assert found.lineage["learned"].keys() == made.learned.keys()  # type: ignore[attr-defined]
    assert found.lineage["fitted"]["steps"] == 4  # type: ignore[index]
    assert found.lineage["options"] == method.options
    assert [one["domains"] for one in found.lineage["sources"]] == [[d] for d in DOMAINS]  # type: ignore[attr-defined]
    with torch.no_grad():  # its batch norms are those of the calibration pictures
        values = found.network.conv1(torch.cat([pictures[d][0] for d in DOMAINS]))
    assert torch.allclose(found.network.bn1.running_mean, values.mean((0, 2, 3)), atol=1e-5)
    path = place.folder / "students" / f"{method.name}-1.00.safetensors"
    assert load_source(path).logits == 12, "it can be merged again"


@pytest.mark.parametrize("align", ["activations", pytest.param("both", marks=pytest.mark.slow)])
def test_a_fit_aligns_as_a_merge_does(place: Place, align: str, tmp_path: Path) -> None:
    """By the activations on all calibration pictures; of shuffled units the student is that of those that were not."""
    path = tmp_path / "shuffled.pth"
    network, twin = (load_source(place.sources[1]).network for _ in range(2))
    spec = trace(network, (3, 16, 16))
    permuted_copy(network, twin, spec, 0)
    torch.save(twin.state_dict(), path)
    method, answers = AdaMergingByDescent(rate=0.01, align=align), []
    asked = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for sources in (place.sources, [place.sources[0], path]):
        module, data = place.module(method, sources=sources, base="mean"), place.data(batch_size=24)
        place.trainer(max_epochs=4).fit(module, datamodule=data)
        student, problem = place.student(method.name), module.problem
        assert problem is not None
        batches = [(d, batch[d]) for batch in data.calibration_dataloader() for d in DOMAINS]
        seen = Evidence(gathered(problem.sources, spec, batches, DOMAINS, [UNITS]))
        maps = Space.of(problem, seen, ALONE, align).maps  # type: ignore[arg-type]
        assert all(torch.equal(student.maps[name].members, units.members) for name, units in maps.items())
        with torch.no_grad():
            answers.append(student(asked))
    if align == "activations":  # the ascent by both may end elsewhere
        assert close(answers[1], answers[0], 1e-3)


def test_nothing_but_coefficients_is_trained_and_scored(place: Place) -> None:
    before = [path.read_bytes() for path in (place.base, *place.sources)]
    module, trainer = place.module(AdaMerging(rate=0.02)), place.trainer()
    trainer.fit(module, datamodule=place.data(validation_fraction=0.5))
    assert [name for name, _ in module.named_parameters()] == ["blend.coefficients"]
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adam), "that of the method"
    assert optimizer.defaults["lr"] == 0.02
    masked = place.module(Concrete())
    place.trainer(max_steps=1).fit(masked, datamodule=place.data())
    assert [name for name, _ in masked.named_parameters()] == ["blend.coefficients", "blend.logits"]
    assert [path.read_bytes() for path in (place.base, *place.sources)] == before
    logged = {"train/entropy", "val/loss", "val/accuracy", "train/coefficient/all layers"}
    logged |= {f"{name}/{d}" for name in ("train/entropy", "train/coefficient") for d in DOMAINS}
    assert set(trainer.callback_metrics) == logged | {f"val/{d}/accuracy" for d in DOMAINS}


def test_checkpoints_are_students_and_an_interrupted_fit_goes_on(place: Place, tmp_path: Path) -> None:
    """From the mask, which is learned first, to its coefficients; on all pictures at once."""
    method, data = ConcreteByDescent("learned", rate=1.0), place.data(batch_size=24)
    module, whole = place.module(method), place.trainer(max_epochs=4)
    module.on_train_epoch_end = lambda: whole.save_checkpoint(tmp_path / f"{module.current_epoch}.ckpt")  # type: ignore[method-assign]
    whole.fit(module, datamodule=data)
    final, half = place.student(method.name), load_student(tmp_path / "1.ckpt")
    assert half.lineage["fitted"]["steps"] == 2  # type: ignore[index]
    assert not same_state(half.network.state_dict(), final.network.state_dict())
    assert same_state(load_student(tmp_path / "3.ckpt").network.state_dict(), final.network.state_dict())
    again = place.trainer(max_epochs=4)
    again.fit(place.module(method), datamodule=data, ckpt_path=tmp_path / "1.ckpt", weights_only=True)
    resumed = place.student(method.name).lineage
    assert resumed["fitted"]["steps"] == again.global_step == 4  # type: ignore[index]
    learned = [one["learned"] for one in (resumed, final.lineage, half.lineage)]  # type: ignore[index]
    assert learned[0]["open"] == learned[1]["open"] == learned[2]["open"], "the mask was done"
    # One that was not learned is open by half in every layer; how many descent moves beyond rounding, nobody promises.
    assert any(abs(share - 0.5) > 1e-5 for share in learned[0]["open"].values())
    mine, theirs, before = (torch.tensor([list(c.values()) for c in one["coefficients"].values()]) for one in learned)
    assert torch.equal(before, torch.full_like(before, 0.3))
    # The same batches and momentum: a thousandth of the way is far beyond rounding, and far below a step.
    assert float((mine - theirs).abs().mean()) < 1e-3 * float((theirs - before).abs().mean())
    kept = torch.load(tmp_path / "1.ckpt", weights_only=True)
    name = next(name for name, members in kept["unit_maps"].items() if len(members) > 12)
    kept["unit_maps"][name] = kept["unit_maps"][name].flip(0)
    torch.save(kept, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match=f"units of 1 groups, {name} first, are matched in another way"):
        place.trainer(max_epochs=4).fit(
            place.module(method), datamodule=data, ckpt_path=tmp_path / "other.ckpt", weights_only=True
        )


def test_what_does_not_go_together_is_refused(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="data is DomainDataModule; use UnlabelledDataModule"):
        place.trainer().fit(place.module(AdaMerging()), datamodule=place.data(DomainDataModule))
    with pytest.raises(ConfigurationError, match="sources holds 1 of at least 2 files"):
        place.module(AdaMerging(), sources=place.sources[:1])
    with pytest.raises(ConfigurationError, match="precision is '64-true'; allowed: '32-true', 'bf16-mixed'"):
        place.trainer(precision="64-true").fit(place.module(AdaMerging()), datamodule=place.data())
    with pytest.raises(ConfigurationError, match="max_epochs is -1"):
        place.trainer(max_epochs=-1).fit(place.module(AdaMerging()), datamodule=place.data())
    with pytest.raises(ConfigurationError, match="align of method adamerging is 'weights'"):
        place.trainer().fit(place.module(AdaMerging(align="weights")), datamodule=place.data())
    with pytest.raises(ConfigurationError, match="which is fitted; score the student"):
        place.trainer().validate(place.module(AdaMerging()), datamodule=place.data(validation_fraction=0.5))
