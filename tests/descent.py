"""Methods that learn by plain gradient descent, so that two ways to the same gradients can be compared."""

import torch

from project.methods import AdaMerging, Concrete
from project.methods.shared import Learned
from project.methods.shared.blend import Blend


class Descent(Learned):
    """Learns by gradient descent with momentum instead of Adam.

    Adam divides each gradient by its own size, so that one that is nothing but rounding makes a whole step of either
    sign, another on every processor. A step in proportion to the gradients differs by no more than rounding does.
    """

    def optimizer(self, blend: Blend) -> torch.optim.Optimizer:
        return torch.optim.SGD(blend.parameters(), lr=self.rate, momentum=0.9)


class AdaMergingByDescent(Descent, AdaMerging):
    pass


class ConcreteByDescent(Descent, Concrete):
    pass
