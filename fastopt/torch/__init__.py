"""fastopt in PyTorch: drop-in optimizers, updates during backward, and schedules as schedulers of torch.

Write ``from fastopt.torch import AdamW`` instead of ``from torch.optim import AdamW``, or ``import fastopt.torch as
optim`` instead of ``import torch.optim as optim``.
"""

from ..extras import require

require("torch", "torch")

from torch.optim import Optimizer, lr_scheduler, swa_utils  # noqa: E402 (after `require`, whose error is clearer)

from ..backends.torch.scheduler import Scheduler  # noqa: E402
from . import optimizers  # noqa: E402
from .backward import step_in_backward  # noqa: E402
from .clipping import clip_grad_norm_  # noqa: E402
from .missing import explain  # noqa: E402
from .optimizers import *  # noqa: E402, F403 (what its `__all__` lists)

__all__ = [
    "Optimizer",
    "Scheduler",
    "clip_grad_norm_",
    "lr_scheduler",
    "step_in_backward",
    "swa_utils",
]
__all__ += optimizers.__all__

__getattr__ = explain
