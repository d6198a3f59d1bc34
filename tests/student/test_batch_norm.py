"""Re-estimated statistics are the mean over pictures of their batches' statistics."""

import pytest
import torch
from helpers import make_problem, pictures, random_network, same_state, space_of
from torch import nn

from project.errors import MergeError
from project.student import batches_of_all, reestimate, reestimation, renormalise, running_variances


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)).eval()


def test_statistics_of_one_norm_by_hand() -> None:
    net, batches = network(), [pictures(4, 0), pictures(7, 1), pictures(2, 2)]
    with torch.no_grad():
        net[1].running_mean.fill_(100.0)  # what was there before is forgotten
        values = [net[0](batch).double().transpose(0, 1).flatten(1) for batch in batches]
    parameters = {name: tensor.clone() for name, tensor in net.named_parameters()}
    reestimate(net, batches)
    shares = [len(batch) / 13 for batch in batches]
    mean = sum(share * value.mean(1) for share, value in zip(shares, values, strict=True))
    variance = sum(share * value.var(1) for share, value in zip(shares, values, strict=True))
    assert torch.allclose(net[1].running_mean.double(), mean, atol=1e-6)
    assert torch.allclose(net[1].running_var.double(), variance, rtol=1e-5)
    assert same_state(parameters, dict(net.named_parameters()))
    assert net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())
    assert running_variances(net) == {"1": pytest.approx(float(variance.mean()), rel=1e-5)}


@pytest.mark.parametrize("seed", range(4))
def test_twice_is_once(seed: int) -> None:
    net, batches = random_network(seed, seed), [pictures(5, 0), pictures(6, 1)]
    reestimate(net, batches)
    once = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    reestimate(net, batches)
    assert same_state(once, net.state_dict())


def test_the_rest_of_a_batch_that_has_no_variance_is_let_through() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    reestimate(net, [pictures(6, 0), pictures(1, 1)])
    alone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    reestimate(alone, [pictures(6, 0)])
    assert same_state(net.state_dict(), alone.state_dict())
    with pytest.raises(MergeError, match="larger batches"):
        reestimate(net, [pictures(1, 1)])


def test_only_norms_train_inside_and_nothing_after_a_failure() -> None:
    net = network()
    with reestimation(net):
        net(pictures(2, 0))
        assert [module.training for module in net] == [False, True, False]
    with pytest.raises(RuntimeError), reestimation(net):
        net(torch.zeros(1, 5, 4, 4))  # not the channels it takes
    assert not any(module.training for module in net.modules())
    assert net[1].momentum == 0.3


def test_a_student_is_renormalised_on_all_domains_together() -> None:
    case = make_problem([random_network(3, seed) for seed in range(2)], batches=[])
    start, together, expected = (case.start(space_of(case, "none").maps) for _ in range(3))
    art, birds = [pictures(4, 0), pictures(3, 1)], [pictures(5, 2)]
    renormalise(together, batches_of_all({"art": art, "birds": birds}))
    reestimate(expected.network, [torch.cat([art[0], birds[0]]), art[1]])
    assert same_state(together.state_dict(), expected.state_dict())
    assert not same_state(together.state_dict(), start.state_dict())
