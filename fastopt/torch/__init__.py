"""fastopt in PyTorch: drop-in optimizers, updates during backward, and schedules as schedulers of torch.

``from fastopt.torch import SGD, Adagrad`` in the place of ``from torch.optim import SGD, Adagrad``.
"""

from ..extras import require

require("torch", "torch")

from .backward import step_in_backward  # noqa: E402 (only now: the absence of torch has been named)
from .optimizers import SGD, Adagrad  # noqa: E402
from .scheduler import Scheduler  # noqa: E402

__all__ = ["SGD", "Adagrad", "Scheduler", "step_in_backward"]
