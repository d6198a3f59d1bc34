"""Pictures dealt out to clients."""

from collections import Counter
from pathlib import Path

import pytest

from project.data import ClientDataModule, Shapes
from project.data.clients import dirichlet_parts
from project.errors import ConfigurationError

SAMPLES = [(Path(f"{label}/{index}.png"), label) for label in range(5) for index in range(40)]


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_every_picture_goes_to_one_client(alpha: float) -> None:
    dealt = dirichlet_parts(SAMPLES, 4, alpha, 0)
    assert len(dealt) == 4
    assert sorted(sample for part in dealt for sample in part) == sorted(SAMPLES)
    assert dealt == dirichlet_parts(SAMPLES[::-1], 4, alpha, 0), "whatever the order of listing"
    assert dealt != dirichlet_parts(SAMPLES, 4, alpha, 1)


def test_small_concentrations_deal_unevenly_and_large_ones_evenly() -> None:
    def largest(alpha: float) -> float:
        """Mean share of a class that its largest client has."""
        dealt = [Counter(label for _, label in part) for part in dirichlet_parts(SAMPLES, 4, alpha, 0)]
        return sum(max(part[label] for part in dealt) / 40 for label in range(5)) / 5

    assert largest(0.05) > largest(1.0) > largest(1000.0)
    assert largest(1000.0) < 0.35  # of four clients


def data(tmp_path: Path, **options: object) -> ClientDataModule:
    sets = Shapes(tmp_path, size=16, train_per_class=4, test_per_class=1, domains=["clipart", "sketch"])
    sets.prepare()
    return ClientDataModule(sets, image_size=16, batch_size=16, validation_fraction=0, **options)  # type: ignore[arg-type]


def test_batches_map_clients_to_their_pictures_until_they_have_no_more(tmp_path: Path) -> None:
    found = data(tmp_path, clients=2, alpha=1.0)
    owned = {name: len(samples) for name, samples in found.client_samples().items()}
    found.batch_size = max(owned.values()) - 1  # the largest client has one picture more than a batch
    assert list(owned) == list(found.client_names) == ["clipart-0", "clipart-1", "sketch-0", "sketch-1"]
    seen: Counter[str] = Counter()
    for batch, _, _ in iter(found.train_dataloader()):
        assert set(batch) == set(owned)
        for name, pair in batch.items():
            if pair is not None:
                assert pair[0].shape[1:] == (3, 16, 16)
                seen[name] += len(pair[1])
    largest = max(owned, key=lambda name: owned[name])
    assert [name for name in owned if seen[name] < owned[name]] == [largest], "a last picture alone is left out"
    assert seen[largest] == owned[largest] - 1


def test_without_several_clients_each_is_its_domain(tmp_path: Path) -> None:
    assert data(tmp_path).client_names == ("clipart", "sketch")


def test_what_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"clients": 0}, "clients is 0; allowed: whole numbers from 1 to 10000"),
        ({"alpha": 0.0}, r"alpha is 0\.0; allowed: above 0"),
        ({"label_space": "different"}, "label_space is 'different'; clients share one head"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            data(tmp_path, **options)
    with pytest.raises(ConfigurationError, match=r"clients is 40 with alpha 0\.5, which leaves clipart-"):
        data(tmp_path, clients=40).client_samples()
