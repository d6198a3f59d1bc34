"""Figures hold what they are given, however much of it there is."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from project.report.figures import layer_figure


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("layers", [3, 60])
def test_every_line_has_its_place_and_leaves_the_axes_theirs(count: int, layers: int) -> None:
    """Matplotlib warns, which fails here, where legends leave nothing of the axes."""
    values = {f"regmean-activations-{number}-1.00": [float(number)] * layers for number in range(count)}
    figure = layer_figure(values, [f"layer3.{layer}.downsample.1" for layer in range(layers)], "share")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    (legend,) = [*figure.legends, *filter(None, [axes.get_legend()])]
    assert [text.get_text() for text in legend.get_texts()] == list(values)
    box, place = legend.get_window_extent(), figure.bbox
    assert 0 <= box.x0 < box.x1 <= place.x1
    assert 0 <= box.y0 < box.y1 <= place.y1
    assert axes.get_window_extent().width > place.width / 3
