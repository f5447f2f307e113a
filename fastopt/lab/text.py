"""A small GPT in plain torch, which learns the characters of Python's own help; importing this needs torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..schedules import Schedule
from ..torch import SGD, Adagrad, Adam
from .network import Array
from .storages import EVERY_SIZE, Measured, Storage, measured
from .training import BETAS, EPS, MOMENTUM

Tensors: TypeAlias = dict[str, Tensor]

LAYERS = 2
WIDTH = 64
HEADS = 4
CONTEXT = 64  # characters that the network sees
BATCH = 8  # windows of so many characters
STEPS = 12  # that count as an epoch
JUDGED = 64  # windows, evenly over the text, whose loss is the training loss
LEARNING_RATES = {"momentum": 0.1, "adagrad": 0.03, "adam": 0.003}  # the best of a few, by the loss after 30 epochs

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": partial(SGD, momentum=MOMENTUM),
    "adagrad": partial(Adagrad, eps=EPS),
    "adam": partial(Adam, betas=BETAS),
}


def load() -> str:
    """Return the text behind ``help("topics")``: about half a million characters of English, which Python brings."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def tokens(text: str) -> tuple[Array, int]:
    """Return a number for each character, and how many different ones there are."""
    characters, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return numbers, len(characters)


def new_parameters(rng: np.random.Generator, characters: int) -> Tensors:
    """Return the parameters of a network: embeddings, and for each layer, attention and two layers of a perceptron.

    The last layer, which scores the next character, has the weights of the embedding.
    """

    def weights(inputs: int, outputs: int, inner: int | None = None) -> Tensor:
        drawn = rng.normal(0, (inner or inputs) ** -0.5, (inputs, outputs))
        return torch.from_numpy(drawn.astype(np.float32))

    params = {"characters": weights(characters, WIDTH, WIDTH), "places": weights(CONTEXT, WIDTH, WIDTH)}
    params["norm"] = torch.ones(WIDTH)
    for k in range(1, LAYERS + 1):
        params[f"norm{k}"] = torch.ones(WIDTH)
        params[f"attend{k}"] = weights(WIDTH, 3 * WIDTH)
        params[f"mix{k}"] = weights(WIDTH, WIDTH)
        params[f"inner_norm{k}"] = torch.ones(WIDTH)
        params[f"inner{k}"] = weights(WIDTH, 4 * WIDTH)
        params[f"outer{k}"] = weights(4 * WIDTH, WIDTH)
    return params


def scores(params: Mapping[str, Tensor], seen: Tensor) -> Tensor:
    """Return a score for each character that may follow, at each place.

    Parameters
    ----------
    params : dict of Tensor
    seen : Tensor of int64, shape (windows, CONTEXT)

    Returns
    -------
    Tensor, shape (windows, CONTEXT, characters)
    """
    x = functional.embedding(seen, params["characters"]) + params["places"]
    for k in range(1, LAYERS + 1):
        x = x + attention(normed(x, params[f"norm{k}"]) @ params[f"attend{k}"]) @ params[f"mix{k}"]
        x = x + functional.gelu(normed(x, params[f"inner_norm{k}"]) @ params[f"inner{k}"]) @ params[f"outer{k}"]
    return normed(x, params["norm"]) @ params["characters"].T


def normed(x: Tensor, gain: Tensor) -> Tensor:
    """Return x with a root mean square of 1 at each place, times a gain."""
    return functional.rms_norm(x, (WIDTH,), gain)


def attention(x: Tensor) -> Tensor:
    """Return values averaged over the places before, and this one; x has queries, keys and values side by side."""
    windows, places, _ = x.shape
    queries, keys, values = x.view(windows, places, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    heads = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return heads.transpose(1, 2).reshape(windows, places, WIDTH)


def loss(params: Mapping[str, Tensor], windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of each next character, in nats; a window has one more than the network sees."""
    return functional.cross_entropy(scores(params, windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def wide(params: Mapping[str, Tensor]) -> Tensors:
    """Return parameters in float32, in which the network computes; gradients go through to the parameters."""
    return {name: tensor.float() for name, tensor in params.items()}


@dataclass(frozen=True)
class Text:
    """A training of the network on a text."""

    numbers: Array  # of its characters
    characters: int  # different ones
    rates: Mapping[str, float]
    steps: int = STEPS

    def windows(self, begins: Array) -> Tensor:
        """Return pieces of the text, from each of these places on."""
        return torch.from_numpy(self.numbers[begins[:, np.newaxis] + np.arange(CONTEXT + 1)])

    def train(self, rule: str, storage: Storage, lr: Schedule, epochs: int, seed: int) -> Iterator[Measured]:
        """Train a new network, and yield after each epoch what is known; only the seed determines start and batches."""
        rng = np.random.default_rng(seed)
        dtype = getattr(torch, storage.parameters)
        params = {
            name: tensor.to(dtype).requires_grad_() for name, tensor in new_parameters(rng, self.characters).items()
        }
        size = sum(tensor.numel() for tensor in params.values())
        optimizer = OPTIMIZERS[rule](params.values(), lr=lr, **EVERY_SIZE, **storage.options)
        last = len(self.numbers) - CONTEXT - 1
        judged = self.windows(np.linspace(0, last, JUDGED, dtype=np.int64))
        for _ in range(epochs):
            for _ in range(self.steps):
                optimizer.zero_grad()
                batch = self.windows(rng.integers(0, last, BATCH, endpoint=True))
                torch.autograd.backward(loss(wide(params), batch))
                optimizer.step()
            with torch.no_grad():
                value = float(loss(wide(params), judged))
            yield measured(value, rule, optimizer, size, lambda state: state.float().numpy())


def text() -> Text:
    """Return the training on the text that Python brings."""
    numbers, characters = tokens(load())
    return Text(numbers, characters, LEARNING_RATES)
