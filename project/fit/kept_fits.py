"""Fits of a walk's layers, recalled from an interrupted run or kept for the next."""

from collections.abc import Callable

from project.fit.layer_fit import LayerFit
from project.runtime.progress import Progress


class KeptFits:
    """The fits of one walk through a network's layers, in order: the first ones recalled, the others kept when made.

    Args:
        progress: For this walk alone.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.number, self.recalling = progress, 0, True

    def __call__(self, layer: str, solve: Callable[[], LayerFit]) -> LayerFit:
        """Recall the next layer's fit, or make and keep it.

        Args:
            layer: The layer's name.
            solve: Makes the fit, where it was not kept.
        """
        name, self.number = f"{self.number:04}-{layer}", self.number + 1
        kept = self.progress.recall(name) if self.recalling else None
        if kept is not None:
            return LayerFit(**{**kept, "matrix": kept["matrix"].to(self.progress.device)})
        self.recalling = False
        fit = solve()
        self.progress.keep(name, vars(fit))
        return fit
