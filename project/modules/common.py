"""What the heads of frozen networks read, gathered over batches and processes."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def everyones(trainer: Trainer, batches: list[Tensor]) -> Tensor:
    """The rows of all processes on the CPU, in the order of the data, which deal them out in turn.

    Args:
        trainer: Whose processes.
        batches: This process's, each (batch, ...).

    Returns:
        Shape (rows, ...), the same in every process.
    """
    mine = torch.cat(batches)
    total = _sum(trainer, torch.tensor(len(mine), device=mine.device))
    whole = mine.new_zeros(int(total), *mine.shape[1:])
    whole[trainer.global_rank :: trainer.world_size] = mine
    return _sum(trainer, whole).cpu()


def _sum(trainer: Trainer, tensor: Tensor) -> Tensor:
    result: Tensor = trainer.strategy.reduce(tensor, reduce_op="sum")
    return result
