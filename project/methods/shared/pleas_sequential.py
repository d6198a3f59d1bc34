"""The sequential fit of one student of PLeaS, with a progress bar and a word on what it looked at."""

import warnings
from dataclasses import asdict, replace

from tqdm import tqdm

from project.fit import SequentialFit
from project.methods.base import Merged
from project.runtime.messages import Heartbeat


def run_sequential(fit: SequentialFit, merged: Merged) -> Merged:
    """Fit a student layer after layer, in place.

    Args:
        fit: The fit, about to begin.
        merged: The student at its start point.

    Returns:
        The same student with the measurements of its layers; its batch norms are settled.
    """
    layers = len(fit.spec.layers)
    with tqdm(total=layers, desc=f"fitting {merged.name}", unit="layer", leave=False, disable=None) as bar:
        log = Heartbeat(f"fitting {merged.name}: layer", layers) if bar.disable else None

        def progress(layer: str) -> None:
            bar.update()
            if log is not None:
                log.beat()

        fits = fit.run(progress)
    if fit.excess is not None and all(layer.pictures * layer.positions == 1 for layer in fits.values()):
        warnings.warn(
            f"excess is {fit.excess}, but {merged.name} is fitted to all samples: no layer has any to spare, or a "
            f"domain has fewer than four batches to tell by (calibration_batch_size).",
            stacklevel=2,
        )
    measured = {name: asdict(layer) for name, layer in fits.items()}
    residuals = {domain: found for domain, found in fit.domain_residuals.items() if found}
    return replace(merged, layers=measured, domain_residuals=residuals, settled=True)
