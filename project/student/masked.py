"""One file that is every source's network, by name: what they share, and a bit a parameter for each of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from project.errors import CheckpointError
from project.models.probe import run_with_features
from project.student.build import Student


class MaskedStudent(Student):
    """Networks θ₀ + λᵢ Mᵢ ⊙ τ, one for each source i, put together when one is asked for (EMR-Merging).

    Named by a domain, it is the network of the source that owns it, and costs what one source costs. Where nobody names
    one, all of them answer, which costs as much as all sources: heads side by side in different mode, and in shared
    mode the log of the mean of their class probabilities.

    Args:
        student: Of one source's size, whose network holds θ₀, and heads that are not shared.
        names: Parameters that are put together, in the order in which the vectors hold them.
        vector: τ, float32, shape (parameters,).
        masks: Mᵢ, eight bits in each uint8, shape (sources, parameters / 8 rounded up); see :func:`packed`.
        scales: λᵢ, shape (sources,).
        kept: What each source has for itself, name -> values, shape (sources, ...): norms, with their statistics.
        owners: domain -> index of the source that owns it.
    """

    by_name = True
    plain = False
    vector: Tensor
    masks: Tensor
    scales: Tensor

    def __init__(
        self,
        student: Student,
        names: Sequence[str],
        vector: Tensor,
        masks: Tensor,
        scales: Tensor,
        kept: Mapping[str, Tensor],
        owners: Mapping[str, int],
    ) -> None:
        super().__init__(
            student.network,
            student.spec,
            student.group_maps,
            student.labels,
            student.architecture,
            student.preprocessing,
            student.lineage,
        )
        self.names, self.kept_names, self.owners = list(names), list(kept), dict(owners)
        self.register_buffer("vector", vector)
        self.register_buffer("masks", masks)
        self.register_buffer("scales", scales)
        for index, values in enumerate(kept.values()):
            self.register_buffer(f"kept_{index}", values)
        self.eval()

    @classmethod
    def of(cls, student: Student, entries: Mapping[str, Any]) -> "MaskedStudent":
        """Put together again what :attr:`entries` gave, on the student's device.

        Args:
            student: Whose network holds θ₀.
            entries: Of the same shapes.
        """
        names = ("names", "vector", "masks", "scales", "kept", "owners")
        rebuilt = cls(student, *(entries[name] for name in names))
        return rebuilt.to(next(student.parameters()).device)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What each source has for itself, by name."""
        return {name: self.get_buffer(f"kept_{index}") for index, name in enumerate(self.kept_names)}

    @property
    def entries(self) -> dict[str, Any]:
        """What a file must hold beside a student's entries: plain values and tensors on the CPU."""
        tensors = {"vector": self.vector, "masks": self.masks, "scales": self.scales}
        return {
            "names": self.names,
            "owners": self.owners,
            "kept": {name: values.cpu() for name, values in self.kept.items()},
            **{name: tensor.cpu() for name, tensor in tensors.items()},
        }

    def task(self, source: int) -> dict[str, Tensor]:
        """Put together the parameters and statistics of one source's network that differ from those of ``network``.

        Args:
            source: Its index.

        Returns:
            Name -> tensor of the parameter's, or the buffer's, shape.
        """
        bits = unpacked(self.masks[source], len(self.vector))
        moved = self.scales[source] * bits * self.vector
        base = [self.network.get_parameter(name) for name in self.names]
        parts = torch.split(moved, [weight.numel() for weight in base])
        tensors = [weight + part.view_as(weight) for weight, part in zip(base, parts, strict=True)]
        own = {name: values[source] for name, values in self.kept.items()}
        return {**dict(zip(self.names, tensors, strict=True)), **own}

    def answer(self, pictures: Tensor, head: str) -> Tensor:
        """Compute the logits of one named head, its columns among those of all, (batch, columns); others are void."""
        if head not in self.owners:
            return self.outputs(pictures)[0]
        return self._run(pictures, self.owners[head])[0]

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute the logits of all networks together, shape (batch, columns of the label space)."""
        return self.outputs(pictures)[0]

    def outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of all networks together, and the features that their heads read, side by side."""
        runs = [self._run(pictures, source) for source in range(len(self.scales))]
        features = torch.cat([read for _, read in runs], 1)
        if self.labels.mode == "shared":
            shares = torch.stack([logits.log_softmax(1) for logits, _ in runs])
            return shares.logsumexp(0) - math.log(len(runs)), features
        logits = runs[0][0].clone()
        for domain, source in self.owners.items():
            logits[:, self.labels.columns(domain)] = runs[source][0][:, self.labels.columns(domain)]
        return logits, features

    def _run(self, pictures: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """Compute the logits of one source's network, and the features that its head reads."""
        wrapped = _Run(self.network, self.spec.head.name)
        values = {f"network.{name}": tensor for name, tensor in self.task(source).items()}
        outputs: tuple[Tensor, Tensor] = functional_call(wrapped, values, (pictures,))
        return outputs

    @property
    def features(self) -> int:
        """Number of features that a gate reads: those of all networks."""
        return len(self.scales) * super().features

    @property
    def held(self) -> int:
        """Parameters, the shared vector, what each source has for itself, and 32 bits of its mask as one more."""
        further = (self.vector, self.scales, *self.kept.values())
        return super().held + sum(tensor.numel() for tensor in further) + -(-self.masks.numel() // 4)

    def dense(self) -> nn.Module:
        """Refuse: it is several networks.

        Raises:
            CheckpointError: Always: as one network it cannot be merged again.
        """
        raise CheckpointError("it is a network for each of its sources, by name, and not one; use the sources instead.")


class _Run(nn.Module):
    """A network that also returns what its head reads, so that its tensors can be replaced for one call."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and features."""
        return run_with_features(self.network, self.head, pictures)


def packed(bits: Tensor) -> Tensor:
    """Pack eight bits into each uint8, the first one lowest.

    Args:
        bits: Boolean, shape (..., bits).

    Returns:
        Shape (..., bits / 8 rounded up).
    """
    padded = torch.unflatten(nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)), -1, (-1, 8))
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpacked(octets: Tensor, count: int) -> Tensor:
    """Unpack the first bits of :func:`packed`.

    Args:
        octets: Uint8, shape (..., octets).
        count: How many bits.

    Returns:
        Boolean, shape (..., count).
    """
    bits = octets[..., None] & octets.new_tensor([1 << bit for bit in range(8)])
    return (bits != 0).flatten(-2)[..., :count]
