"""Pictures made to look like what a source was trained on, as its batch norms remember that.

Running statistics are all that a trained network keeps of its pictures. Gradient descent on pixels brings the mean and
the variance of what every norm reads towards them, as in data-free distillation (DeepInversion, arXiv 1912.08795;
ZeroQ, arXiv 2001.00281), here from pictures that belong to no domain. What comes out differs from source to source, so
that a student can follow each source on its own; one picture for all of them could only ask for their mean.
"""

import torch
from torch import Tensor, nn

from project.errors import MergeError
from project.models import Preprocessing
from project.moments import BatchNorm
from project.student.batch_norm import batch_norms

LEARNING_RATE = 0.05
"""Step of Adam, in the unit of normalised pixels."""


def strangeness(source: nn.Module, pictures: Tensor) -> Tensor:
    """Measure how far the statistics of a batch lie from what a network was trained on.

    The mean over norms and their units of (m − μ)² / σ² + ln² (s / σ), with m and s the mean and standard deviation
    over the batch, μ and σ those that the norm keeps.

    Args:
        source: In eval mode.
        pictures: Float32, shape (batch, channels, height, width).

    Returns:
        A scalar, differentiable.

    Raises:
        MergeError: Where no batch norm keeps running statistics.
    """
    distances: list[Tensor] = []

    def measure(norm: BatchNorm, inputs: tuple[Tensor]) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values, kept = inputs[0].transpose(0, 1).flatten(1), norm.running_var + norm.eps
        spread = (values.var(1, correction=0) + norm.eps) / kept
        distances.append(((values.mean(1) - norm.running_mean).square() / kept + spread.log().square() / 4).mean())

    handles = [norm.register_forward_pre_hook(measure) for norm in batch_norms(source).values()]
    try:
        source(pictures)
    finally:
        for handle in handles:
            handle.remove()
    if not distances:
        raise MergeError("pictures cannot be made to look like a source's: no batch norm keeps running statistics.")
    return torch.stack(distances).mean()


@torch.enable_grad()
def restyled(source: nn.Module, pictures: Tensor, steps: int, preprocessing: Preprocessing | None = None) -> Tensor:
    """Change a batch of pictures so that a source finds it less strange.

    Args:
        source: In eval mode; left bit-identical.
        pictures: Float32, shape (batch, channels, height, width).
        steps: Steps of Adam.
        preprocessing: What the pictures went through, so that they stay in the range of pictures; None for no limits.

    Returns:
        Float32, of the pictures' shape.
    """
    read = preprocessing.read if preprocessing is not None else ((), ())
    mean, std = (pictures.new_tensor(values).view(-1, 1, 1) for values in read)
    changed = pictures.clone().requires_grad_()
    optimizer = torch.optim.Adam([changed], LEARNING_RATE)
    for _ in range(steps):
        (changed.grad,) = torch.autograd.grad(strangeness(source, changed), [changed])
        optimizer.step()
        if preprocessing is not None:
            changed.data.clamp_(-mean / std, (1 - mean) / std)
    return changed.detach()
