"""Times iterations of a small GPT-2 in the Trainer of transformers: with its clipping, and with fastopt's in the step.

The Trainer clips before each step and logs the norm. Clipping within the step is the recipe of docs/recipes.md.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

import fastopt.torch
from fastopt.extras import require
from fastopt.progress import track

from .contenders import FASTOPT_TORCH, LR, Step
from .measure import Clock, Pace, settled
from .stages import CLIPPING, MAX_NORM, TORCH, Stage, rows

WORKLOAD = "an iteration in Trainer"
RULE = "adamw"
ITERATIONS = 30  # of one training, the first of which are not timed
WARM_UP = 5
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH, BATCH = 64, 2, 2, 64, 16, 8

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    FASTOPT_TORCH: (fastopt.torch.AdamW, {"lr": LR}),
    TORCH: (torch.optim.AdamW, {"lr": LR, "fused": True}),
}

Training = Callable[[], float]  # trains, and returns the seconds of an iteration


def iterations(pace: Pace) -> list[Stage]:
    """Measure an iteration with either optimizer.

    Raises
    ------
    ImportError
        If transformers or accelerate is not installed.
    """
    require("accelerate", "clients")
    transformers = require("transformers", "clients")
    trainers = {FASTOPT_TORCH: clipping_trainer(transformers.Trainer), TORCH: transformers.Trainer}
    with tempfile.TemporaryDirectory() as folder, random_states_kept():
        trainings = {name: training(transformers, cls, OPTIMIZERS[name], folder) for name, cls in trainers.items()}
        for train in track(list(trainings.values()), "Training in Trainer"):
            train()
        rounds = settled(trainings, by_their_own_clock, pace, (FASTOPT_TORCH,))
    return rows(CLIPPING, TORCH, WORKLOAD, RULE, rounds)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave the global random states as they were; the Trainer seeds all of them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def by_their_own_clock(trainings: Mapping[str, Step]) -> dict[str, Clock]:
    """Take the time that a training returns: it starts its clock when everything is set up."""
    return dict.fromkeys(trainings, lambda train: train())


def clipping_trainer(trainer: Any) -> Any:
    """Make a Trainer that leaves the clipping to the step of fastopt.torch."""

    class Clipping(trainer):  # type: ignore[misc]
        def _clip_grad_norm(self, model: Any) -> torch.Tensor:
            norm: torch.Tensor = self.optimizer.optimizer.clip_grad_norm_(self.args.max_grad_norm)
            return norm

    return Clipping


def training(transformers: Any, trainer: Any, optimizer: tuple[Any, dict[str, Any]], folder: str) -> Training:
    """Make trainings of one model, each by a new Trainer with a new optimizer."""
    model, data = language_model(transformers), texts()
    beats: list[float] = []

    class Beats(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            beats.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        folder,
        max_steps=ITERATIONS,
        per_device_train_batch_size=BATCH,
        max_grad_norm=MAX_NORM,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )

    def train() -> float:
        made = trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=optimizer, callbacks=[Beats()])
        made.remove_callback(transformers.PrinterCallback)
        beats.clear()
        made.train()
        return median(after - before for before, after in pairwise(beats[WARM_UP:]))

    return train


def language_model(transformers: Any) -> Any:
    """Return a small GPT-2 without dropout, always the same."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # its default, about which a message would appear
    return model


def texts() -> Sequence[dict[str, torch.Tensor]]:
    """Return what it learns: to count on."""
    counted = (torch.arange(BATCH * ITERATIONS)[:, None] + torch.arange(LENGTH)) % VOCABULARY
    return [{"input_ids": ids, "labels": ids} for ids in counted]
