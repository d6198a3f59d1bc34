import pytest

from project.errors import ConfigurationError
from project.models import Architecture
from project.models.freezing import freeze


def test_parts_and_all_below_them() -> None:
    network = Architecture("resnet20", 3).build()
    freeze(network, ("conv1", "layer1.1"))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"conv1.weight"} | {
        f"layer1.1.{name}"
        for name in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")
    }


@pytest.mark.parametrize("name", ["stem", "layer1.9", "layer", ""])
def test_unknown_part(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"freeze holds '{name}'; allowed: conv1, bn1"):
        freeze(Architecture("resnet20", 3).build(), [name])
