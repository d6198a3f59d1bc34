"""A plain loop that drives a merge; Lightning's validation loop does the same for ``pleas merge``."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from project.merging.engine import Engine


class Batches(Protocol):
    """Where the batches of a pass come from."""

    def calibration_batches(self, labelled: bool = False) -> Iterable[Any]:
        """Batches that map every domain to pictures, or to these and their labels, or to None."""


def drive(engine: Engine, data: Batches, device: torch.device, progress: bool = True) -> None:
    """Bring a merge to its end in this process.

    Args:
        engine: The merge, ready for its first pass.
        data: Gives the calibration pictures.
        device: Where networks run and layers are solved.
        progress: Whether bars show how far it is, on a terminal.
    """
    while not engine.finished:
        engine.networks.to(device)
        batches: Iterable[Any] = data.calibration_batches(engine.labelled) if engine.looks else [{}]
        try:
            engine.start(device)
            with torch.no_grad():
                shown = tqdm(batches, engine.words, unit="batch", leave=False, disable=None if progress else True)
                for number, batch in enumerate(shown):
                    engine.step(number, {domain: _moved(part, device) for domain, part in batch.items()})
        except BaseException as error:
            engine.abandon(error)
            raise
        engine.end()
    engine.networks.to("cpu")


def _moved(part: Any, device: torch.device) -> Any:
    """Pictures, or pictures and labels, on a device; None stays None."""
    if isinstance(part, Tensor):
        return part.to(device)
    return None if part is None else tuple(tensor.to(device) for tensor in part)
