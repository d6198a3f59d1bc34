"""What the server makes of its clients, against NumPy, and what liars can do to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import same_state
from torch import nn

from project.errors import ConfigurationError
from project.methods import Interpolation, PLeaS
from project.modules.fusion import (
    ActorCriticFusion,
    Median,
    MergedClients,
    ProxyScore,
    Round,
    SearchedMean,
    ServerFusion,
    TrimmedMean,
    WeightedMean,
    attacked,
    is_finite,
    weighted_mean,
)  # fmt: skip
from project.modules.fusion.actor_critic import client_features
from project.modules.fusion.base import State

SAMPLES = (10, 20, 5, 65, 40)
PLAIN = [WeightedMean(), TrimmedMean(0.4), Median(), SearchedMean(12), ActorCriticFusion(12)]


def network(seed: int) -> nn.Module:
    """With a norm, whose counter holds whole numbers."""
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head)
    made[1].running_var = torch.rand(4) + 0.5  # type: ignore[union-attr]
    return made.eval()


def states(count: int, spread: float = 0.1) -> tuple[State, list[State]]:
    """A server, and clients around it."""
    server = network(0).state_dict()
    clients = [
        {
            name: tensor + spread * others[name] if tensor.is_floating_point() else tensor
            for name, tensor in server.items()
        }
        for others in (network(seed).state_dict() for seed in range(1, count + 1))
    ]
    return server, clients


def loaded(state: State) -> nn.Module:
    made = network(0)
    made.load_state_dict(state)
    return made


def given(clients: Sequence[State], server: State, number: int = 0) -> Round:
    """A round whose proxy pictures are labelled as the server sees them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = loaded(server)(x).argmax(1)

    @torch.no_grad()
    def score(state: State) -> ProxyScore:
        logits = loaded(state)(x)
        return ProxyScore(float(nn.functional.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean()))

    names = [f"client {index}" for index in range(len(clients))]
    return Round(number, server, clients, names, SAMPLES[: len(clients)], score, lambda: list(x.split(16)), loaded)


def stacked(clients: Sequence[State], name: str) -> np.ndarray:
    return np.stack([client[name].double().numpy() for client in clients])


@pytest.mark.parametrize(("fusion", "reference"), [
    (WeightedMean(), lambda values: np.average(values, axis=0, weights=SAMPLES)),
    (Median(), lambda values: np.median(values, axis=0)),
    (TrimmedMean(0.0), lambda values: values.mean(0)),
    (TrimmedMean(0.2), lambda values: np.sort(values, axis=0)[1:-1].mean(0)),
    (TrimmedMean(0.4), lambda values: np.sort(values, axis=0)[2:-2].mean(0)),
])  # fmt: skip
def test_means_are_numpys(fusion: ServerFusion, reference: Any) -> None:
    server, clients = states(5)
    found = fusion.fuse(given(clients, server))
    for name, tensor in server.items():
        assert found[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            assert np.allclose(found[name].numpy(), reference(stacked(clients, name)), atol=1e-6), name
        else:
            assert torch.equal(found[name], clients[0][name])


def test_the_median_of_an_even_number_is_the_mean_of_two() -> None:
    server, clients = states(4)
    found = Median().fuse(given(clients, server))
    assert np.allclose(found["0.weight"].numpy(), np.median(stacked(clients, "0.weight"), axis=0), atol=1e-6)


@pytest.mark.parametrize("fusion", PLAIN, ids=lambda fusion: type(fusion).__name__)
def test_clients_that_agree_are_what_they_agree_on(fusion: ServerFusion) -> None:
    server, (client, *_) = states(1)
    found = fusion.fuse(given([client] * 5, server))
    for name, tensor in client.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=1e-6), name


@pytest.mark.parametrize("fusion", [TrimmedMean(0.4), Median()], ids=lambda fusion: type(fusion).__name__)
@pytest.mark.parametrize("attack", ["sign_flip", "scale", "noise"])
def test_a_minority_of_liars_stays_within_the_honest(fusion: ServerFusion, attack: Any) -> None:
    server, clients = states(5)
    lying = [attacked(client, server, attack, torch.Generator().manual_seed(0)) for client in clients[:2]]
    found = fusion.fuse(given([*lying, *clients[2:]], server))
    for name, tensor in server.items():
        if tensor.is_floating_point():
            honest = torch.stack([client[name] for client in clients[2:]])
            slack = 1e-6 * honest.abs().amax()
            assert (found[name] >= honest.amin(0) - slack).all(), name
            assert (found[name] <= honest.amax(0) + slack).all(), name


def test_lies_are_what_they_are_called() -> None:
    server, (client,) = states(1)
    update = {name: client[name].double() - server[name].double() for name in server}
    lies: tuple[Any, ...] = ("sign_flip", "scale", "noise", "nan")
    sent = {lie: attacked(client, server, lie, torch.Generator().manual_seed(0)) for lie in lies}
    for name, tensor in server.items():
        if name in ("1.running_var", "1.num_batches_tracked"):
            assert all(torch.equal(sent[attack][name], client[name]) for attack in ("sign_flip", "scale", "noise"))
            continue
        assert torch.allclose(sent["sign_flip"][name].double(), tensor - update[name], atol=1e-6)
        assert torch.allclose(sent["scale"][name].double(), tensor + 10 * update[name], atol=1e-5)
    noise = sent["noise"]["0.weight"] - client["0.weight"]
    assert float(noise.std()) == pytest.approx(10 * float(update["0.weight"].std()), rel=0.3)
    assert not is_finite(sent["nan"])
    assert is_finite(client)


@pytest.mark.parametrize("kind", [SearchedMean, ActorCriticFusion])
def test_what_is_tried_is_never_worse_than_the_mean(kind: Any) -> None:
    """On the pictures that it is tried on: of two liars among five it hears less."""
    server, clients = states(5)
    lying = [attacked(client, server, "scale", torch.Generator().manual_seed(0)) for client in clients[3:]]
    scene = given([*clients[:3], *lying], server)
    plain = scene.score(weighted_mean(scene.clients, scene.shares))
    fusion = kind(evaluations=24)
    for number in range(3):
        found = scene.score(fusion.fuse(given(scene.clients, server, number)))
        if kind is SearchedMean:
            assert found.loss <= plain.loss
        else:
            assert (-found.accuracy, found.loss) <= (-plain.accuracy, plain.loss)
    assert found.accuracy > plain.accuracy


def test_a_search_tries_as_many_as_it_may_and_the_same_again() -> None:
    server, clients = states(3)
    scene = given(clients, server)
    for count in (1, 2, 9):
        tried = SearchedMean(count).candidates(scene)
        assert len(tried) == count
        assert np.allclose(np.sum(tried, axis=1), 1)
        assert tried[0] == scene.shares
    assert SearchedMean(9).candidates(scene) == tried
    assert SearchedMean(9, seed=1).candidates(scene)[4:] != tried[4:]
    assert SearchedMean(9).candidates(given(clients, server, 1))[4:] != tried[4:]


@pytest.mark.parametrize("evaluations", [4, 5, 12])
def test_evaluations_are_counted(evaluations: int) -> None:
    """Each client alone comes to them where states are looked at."""
    server, clients = states(3)
    scene, seen = given(clients, server), []
    counting = Round(
        0, server, clients, scene.names, scene.samples,
        lambda state: seen.append(1) or scene.score(state), scene.pictures, scene.network,  # type: ignore[func-returns-value]
    )  # fmt: skip
    SearchedMean(evaluations).fuse(counting)
    assert len(seen) == evaluations
    seen.clear()
    ActorCriticFusion(evaluations).fuse(counting)
    assert len(seen) <= evaluations + len(clients)  # a draw of nobody is not scored


def test_features_are_those_of_numpy() -> None:
    server, clients = states(4)
    scene = given(clients, server)
    names = [name for name, tensor in server.items() if tensor.is_floating_point()]
    flat = [np.concatenate([one[name].double().numpy().ravel() for name in names]) for one in (server, *clients)]
    updates = np.stack(flat[1:]) - flat[0]
    mean, lengths = updates.mean(0), np.linalg.norm(updates, axis=1)
    scores = np.array([scene.score(client) for client in clients])
    samples = np.log(SAMPLES[:4])
    expected = np.stack([
        scores[:, 0] - scores[:, 0].mean(), scores[:, 1] - scores[:, 1].mean(),
        np.log(lengths / np.sort(lengths)[1]),  # torch's median of an even number is the lower one
        updates @ mean / lengths / np.linalg.norm(mean), samples - samples.mean(),
    ], axis=1)  # fmt: skip
    assert np.allclose(client_features(scene).numpy(), expected, atol=1e-5)


def test_an_interrupted_actor_critic_goes_on_bit_for_bit() -> None:
    """Through a file that is loaded without running code."""
    server, clients = states(4)
    rounds = [given(clients, server, number) for number in range(4)]
    whole, first, second = (ActorCriticFusion(8) for _ in range(3))
    for scene in rounds:
        expected = whole.fuse(scene)
    for scene in rounds[:2]:
        first.fuse(scene)
    path = "state.pt"
    torch.save(first.state(), path)
    second.load_state(torch.load(path, weights_only=True))
    for scene in rounds[2:]:
        found = second.fuse(scene)
    assert same_state(found, expected)
    assert same_state(second.networks.state_dict(), whole.networks.state_dict())
    assert second.steps == whole.steps


def test_the_filter_learns_whom_not_to_hear() -> None:
    """A client that sends a negated network is heard less and less; honest ones are not."""
    server, clients = states(3, spread=0.01)
    kept = ("1.running_var", "1.num_batches_tracked")
    liar = {name: tensor if name in kept else -3 * tensor for name, tensor in server.items()}
    fusion = ActorCriticFusion(24, learning_rate=0.1)
    for number in range(15):
        scene = given([*clients, liar], server, number)
        fusion.fuse(scene)
    with torch.no_grad():
        chances = fusion.networks["filter"](client_features(scene)).sigmoid()
    assert chances[3] < 0.2
    assert chances[:3].min() > chances[3] + 0.3


def test_merged_clients_are_matched() -> None:
    """A permuted copy and the network itself merge to the network; a plain mean is another."""
    server = network(0)
    order = torch.tensor([2, 0, 3, 1])
    copy = {n: t.clone() for n, t in server.state_dict().items()}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        copy[name] = copy[name][order]
    copy["5.weight"] = copy["5.weight"][:, order]
    scene = given([server.state_dict(), copy], server.state_dict())
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = server(x)
        found = MergedClients(PLeaS()).fuse(scene)
        assert list(found) == list(server.state_dict())
        assert torch.allclose(loaded(found)(x), expected, atol=1e-3 * float(expected.abs().max()))
        plain = loaded(WeightedMean().fuse(scene))(x)
    assert not torch.allclose(plain, expected, atol=1e-2 * float(expected.abs().max()))


def test_one_client_is_taken_as_it_is() -> None:
    server, (client,) = states(1)
    assert same_state(MergedClients(PLeaS()).fuse(given([client], server)), dict(client))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: TrimmedMean(0.5), "share is 0.5"), (lambda: TrimmedMean(-0.1), "share is -0.1"),
    (lambda: SearchedMean(0), "evaluations is 0"), (lambda: ActorCriticFusion(3), "evaluations is 3"),
    (lambda: ActorCriticFusion(discount=1.5), "discount is 1.5"), (lambda: SearchedMean(seed=-1), "seed is -1"),
    (lambda: MergedClients(Interpolation()), "method is interpolation, which makes other"),
])  # fmt: skip
def test_what_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()
