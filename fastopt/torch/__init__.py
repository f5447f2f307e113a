"""fastopt in PyTorch: drop-in optimizers, updates during backward, and schedules as schedulers of torch.

``from fastopt.torch import AdamW`` in the place of ``from torch.optim import AdamW``, and so for the others.
"""

from ..extras import require

require("torch", "torch")

from .backward import step_in_backward  # noqa: E402 (only now: the absence of torch has been named)
from .optimizers import SGD, Adagrad, Adam, AdamW, RMSprop  # noqa: E402
from .scheduler import Scheduler  # noqa: E402

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop", "Scheduler", "step_in_backward"]
