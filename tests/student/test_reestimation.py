"""Re-estimated statistics are those of what each norm reads on all pictures, however these are divided."""

import copy
from collections.abc import Callable
from datetime import timedelta
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import make_problem, only, pictures, random_network, resnet, same_state, space_of
from meeting import together
from torch import Tensor, nn

from project.errors import MergeError
from project.methods import WEMoE
from project.runtime import World
from project.student import (
    Reestimation,
    batch_norms,
    batches_of_all,
    own_statistics,
    reestimate,
    renormalise,
    running_variances,
)
from project.student.reestimation import UnitMoments

Network = Callable[[], nn.Module]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)).eval()


def small_resnet() -> nn.Module:
    return resnet("resnet20", 0, 12)


def small_pictures(count: int = 70) -> Tensor:
    return pictures(count, 3, (3, 16, 16))


def read(net: nn.Module, given: Tensor) -> dict[str, Tensor]:
    """What each batch norm reads in eval mode, float64, shape (units, values)."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: found.update({name: inputs[0].transpose(0, 1).flatten(1).double()})

    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in batch_norms(net).items()]
    with torch.no_grad():
        net.eval()(given)
    for handle in handles:
        handle.remove()
    return found


def apart(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of their statistics, over the largest of the norm."""
    found = 0.0
    for mine, theirs in zip(batch_norms(one).values(), batch_norms(other).values(), strict=True):
        for name in ("running_mean", "running_var"):
            a, b = mine.get_buffer(name), theirs.get_buffer(name)
            found = max(found, float((a - b).abs().max() / b.abs().max()))
    return found


def test_statistics_of_one_norm_by_hand() -> None:
    net, batches = network(), [pictures(4, 0), pictures(7, 1), pictures(2, 2)]
    with torch.no_grad():
        net[1].running_mean.fill_(100.0)  # what was there before is forgotten
        values = net[0](torch.cat(batches)).double().transpose(0, 1).flatten(1)
    parameters = {name: tensor.clone() for name, tensor in net.named_parameters()}
    reestimate(net.train(), batches)
    assert torch.allclose(net[1].running_mean.double(), values.mean(1), atol=1e-6)
    assert torch.allclose(net[1].running_var.double(), values.var(1), rtol=1e-5)
    assert same_state(parameters, dict(net.named_parameters()))
    assert net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())
    assert running_variances(net) == {"1": pytest.approx(float(values.var(1).mean()), rel=1e-5)}


@pytest.mark.parametrize("seed", range(6))
def test_every_norm_holds_the_statistics_of_what_it_reads_in_eval_mode(seed: int) -> None:
    net, given = random_network(seed, seed).double(), pictures(11, 0).double()
    reestimate(net, given.split(4))
    values = read(net, given)
    assert values
    for name, norm in batch_norms(net).items():
        assert torch.allclose(norm.running_mean, values[name].mean(1), rtol=0, atol=1e-12)  # type: ignore[arg-type]
        assert torch.allclose(norm.running_var, values[name].var(1), rtol=1e-12, atol=0)  # type: ignore[arg-type]
    once = copy.deepcopy(net)
    reestimate(net, given.split(4))
    assert apart(net, once) == 0.0, "what was there before plays no part"


def test_it_is_what_one_batch_of_all_pictures_is_normalised_by() -> None:
    """In eval mode on all pictures the network then does what torch does in training mode, for many values a unit."""
    net, given = small_resnet().double(), small_pictures(40).double()
    trained = copy.deepcopy(net).train()
    reestimate(net, given.split(7))
    with torch.no_grad():
        mine, theirs = net(given), trained(given)
    # Torch normalises by the biased variance: at the last norms, of 640 values, by one in 1,280 of a deviation.
    assert float((mine - theirs).abs().max()) < 0.05 * float(theirs.std())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small_resnet, marks=pytest.mark.slow, id="resnet"),
        pytest.param(lambda: random_network(1, 1), id="random"),
    ],
)
def test_batches_processes_and_room_play_no_part(make: Network, dtype: torch.dtype, bound: float) -> None:
    """But for rounding: of what the network computes on a batch, which depends on its size, in float32 some 1e-7."""
    given = (small_pictures() if make is small_resnet else pictures(70, 3)).to(dtype)
    whole = make().to(dtype)
    before = copy.deepcopy(whole)
    reestimate(whole, [given])
    assert apart(before, whole) > 0.1
    for batch in (1, 8, 64):
        net = make().to(dtype)
        reestimate(net, given.split(batch))
        assert apart(net, whole) < bound, batch
    for room in (0, 10**5):
        net = make().to(dtype)
        Reestimation(net).finish(lambda: given.split(8), room=room)
        assert apart(net, whole) < bound, room
    for size, batch in ((2, 8), (2, 64), (3, 5)):
        nets = [make().to(dtype) for _ in range(size)]
        parts = [given[rank::size].split(batch) for rank in range(size)]

        def work(
            world: World, nets: list[nn.Module] = nets, parts: list[tuple[Tensor, ...]] = parts
        ) -> bool:  # one process has room and the other has none
            room = inf if world.rank else 0
            Reestimation(nets[world.rank]).finish(lambda: parts[world.rank], world, room)
            return True

        together(size, work)
        assert apart(nets[0], whole) < bound
        assert all(same_state(nets[0].state_dict(), net.state_dict()) for net in nets[1:])


def test_shares_may_be_uneven_and_one_of_them_empty() -> None:
    given, nets, whole = small_pictures(9), [small_resnet() for _ in range(3)], small_resnet()
    parts: list[list[Tensor]] = [[given[:8]], [], [given[8:]]]
    reestimate(whole, [given])
    together(3, lambda world: Reestimation(nets[world.rank]).finish(lambda: parts[world.rank], world) is None)
    assert all(apart(net, whole) < 1e-5 for net in nets)


def test_what_there_is_room_for_is_computed_once() -> None:
    given, counts = small_pictures(12), []
    for room in (inf, 10**5, 0):
        net = small_resnet()
        ran: list[int] = []
        net.conv1.register_forward_hook(lambda *_, ran=ran: ran.append(1))  # type: ignore[union-attr, operator]
        Reestimation(net).finish(lambda: given.split(4), room=room)
        counts.append(len(ran))
    # At the first norms there are 16 channels of 16 × 16, twice beside a shortcut; at the last ones a quarter.
    norms = len(batch_norms(small_resnet()))
    assert counts[0] == 3
    assert 3 < counts[1] < counts[2] == 3 * norms


def test_a_large_mean_takes_nothing_from_a_variance() -> None:
    norm, random = nn.BatchNorm1d(3), np.random.default_rng(0)
    values = 1e8 + random.standard_normal((1000, 3))
    moments = UnitMoments(norm)
    for part in torch.from_numpy(values).split(37):
        moments.add(part)
    mean, variance = moments.statistics("norm", World())
    # The mean holds 16 digits, so that a deviation from it has 8.
    assert np.allclose(variance.numpy(), values.var(0, ddof=1), rtol=1e-7)
    assert np.allclose(mean.numpy(), values.mean(0), rtol=1e-14)


def test_lone_pictures_count_too_and_one_alone_has_no_variance() -> None:
    net, whole = (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval() for _ in range(2))
    reestimate(net, [pictures(6, 0), pictures(1, 1)])
    reestimate(whole, [torch.cat([pictures(6, 0), pictures(1, 1)])])
    assert apart(net, whole) < 1e-6
    with pytest.raises(MergeError, match="batch norm '1' cannot be re-estimated: there are 1 values a unit in all"):
        reestimate(net, [pictures(1, 1)])


def test_norms_that_never_run_or_are_to_stay_are_left_alone() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.spare, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            second: Tensor = self.second(self.first(x))
            return second

    net = Spare()
    reestimate(net, [pictures(5, 0)], skip=["first"])
    assert same_state(net.spare.state_dict(), nn.BatchNorm2d(3).state_dict())
    assert same_state(net.first.state_dict(), nn.BatchNorm2d(3).state_dict())
    values = pictures(5, 0).transpose(0, 1).flatten(1) / (1 + 1e-5) ** 0.5
    assert torch.allclose(net.second.running_var, values.var(1))  # type: ignore[arg-type]


def test_after_a_failure_nothing_trains() -> None:
    net = network()
    with pytest.raises(RuntimeError):
        reestimate(net, [torch.zeros(1, 5, 4, 4)])  # not the channels it takes
    assert not any(module.training for module in net.modules())
    assert net[1].momentum == 0.3


def test_a_student_is_renormalised_on_all_domains_together() -> None:
    case = make_problem([random_network(3, seed) for seed in range(2)], batches=[])
    start, together_, expected = (case.start(space_of(case, "none").maps) for _ in range(3))
    art, birds = [pictures(4, 0), pictures(3, 1)], [pictures(5, 2)]
    renormalise(together_, lambda: batches_of_all({"art": art, "birds": birds}))
    reestimate(expected.network, [*art, *birds])
    assert apart(together_.network, expected.network) < 1e-5
    assert apart(together_.network, start.network) > 0.01


def test_mixtures_take_the_statistics_under_their_gates() -> None:
    base = random_network(1, 5)
    case = make_problem([random_network(1, seed) for seed in range(2)], needs=(), base=base)
    student, given = only(WEMoE(steps=0), case).student, pictures(9, 0)
    renormalise(student, lambda: batches_of_all({"art": given.split(4)}), room=0)
    for name, values in read(student.network, given).items():
        norm = batch_norms(student.network)[name]
        assert torch.allclose(norm.running_var.double(), values.var(1), rtol=1e-4), name  # type: ignore[union-attr]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    net, learner = small_resnet(), small_resnet()
    Reestimation(net).finish(lambda: small_pictures()[rank::2].split(8), World.current())
    with own_statistics(learner, world=World.current()):
        learner(small_pictures()[rank::2]).square().sum().backward()
    for parameter in learner.parameters():
        World.current().reduce(parameter.grad)  # type: ignore[arg-type]
    found = [net.state_dict(), {name: parameter.grad for name, parameter in learner.named_parameters()}]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_real_processes_do_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    net, learner = small_resnet(), small_resnet()
    reestimate(net, small_pictures().split(64))
    with own_statistics(learner):
        learner(small_pictures()).square().sum().backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in learner.parameters())  # type: ignore[union-attr]
    states, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    for found in (states, gradients):
        assert same_state(*found), "bit for bit in both"
    for name, tensor in net.state_dict().items():
        assert torch.allclose(states[0][name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max())), name
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(gradients[0][name], parameter.grad, rtol=0, atol=1e-3 * largest), name
