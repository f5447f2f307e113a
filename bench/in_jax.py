"""optax under `jax.jit`, on the CPU: the whole step is one compiled function with donated parameters and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.extras import require

from .workloads import Arrays


class OptaxStep:
    """A step of optax, ready to be called; jax owns the parameters, which its functions replace.

    Parameters
    ----------
    arrays : Arrays
        They are copied.
    make : callable
        Makes the optimizer, given the module `optax`.
    """

    def __init__(self, arrays: Arrays, make: Callable[[Any], Any]) -> None:
        self.jax = require("jax", "optax")
        optax = require("optax", "optax")
        optimizer = make(optax)
        host = self.jax.devices("cpu")[0]
        # Copied, since jax may take over a NumPy array's memory, and donate it.
        self.params, self.grads = (
            [self.jax.device_put(array.copy(), host) for array in of] for of in (arrays.params, arrays.grads)
        )
        with self.jax.default_device(host):
            self.state = optimizer.init(self.params)

        def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = self.jax.jit(update, donate_argnums=(0, 1))

    def __call__(self) -> None:
        """Take the step, and wait for it."""
        self.params, self.state = self.jax.block_until_ready(self.update(self.params, self.state, self.grads))

    def read(self, arrays: Arrays) -> None:
        """Copy the parameters into arrays."""
        for array, param in zip(arrays.params, self.params, strict=True):
            array[...] = param
