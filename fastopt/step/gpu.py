"""A GPU: it prepares the launches of plans, and updates single tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels.stream import Stream
from ..kernels.tables import HYPERS
from ..rules import Row
from .chunks import Strides
from .gpu_launch import GpuLaunch
from .gpu_rows import WARM_UP, GpuRows
from .gpu_sparse import GivenThere, RowsLaunch
from .index_check import Checked, IndexCheck
from .launch import NO_STORAGE, Entry, LaunchCache, StorageRow, Variant

OLDEST = 70  # compute capability: Volta, from 2017

NO_CAPTURE = "a single update cannot be captured: make an optimizer, and capture its step"


class GpuLauncher:
    """Prepares the launches of one plan on a GPU, which share its hyper rows."""

    def __init__(self, rows: GpuRows) -> None:
        self.rows = rows

    def launch(self, variant: Variant, sizes: Sequence[int]) -> GpuLaunch:
        """Prepare a launch."""
        self._refuse_captures()
        return GpuLaunch(self.rows, variant, sizes)

    def launch_rows(self, variant: Variant, size: int) -> RowsLaunch:
        """Prepare a launch over some rows of a table of a size."""
        self._refuse_captures()
        return RowsLaunch(self.rows, variant, size)

    def _refuse_captures(self) -> None:
        """Raise where a launch cannot be prepared, since its tables take memory."""
        if self.rows.capturing:
            raise RuntimeError(WARM_UP)

    def index_check(self) -> IndexCheck:
        """Return what checks the indices of sparse gradients."""
        return self.rows.check_here()


class Gpu:
    """A GPU with its memory, as one library uses it: work goes on that library's current stream."""

    on_gpu = True

    def __init__(
        self,
        cupy: Any,
        index: int,
        current_stream: Callable[[], Any],
        new_number: Callable[[], tuple[Any, int]],
        exchange: int = 0,
    ) -> None:
        capability = cupy.cuda.Device(index).compute_capability
        if int(capability) < OLDEST:
            raise ValueError(f"GPU {index} has compute capability {int(capability) / 10:.1f}; at least 7.0 is needed")
        self.cupy, self.index, self.current_stream, self.exchange = cupy, index, current_stream, exchange
        self.new_number = new_number  # allocates a float64 without axes, and returns it and its address
        self.cache = LaunchCache()

    def open(self) -> GpuLauncher:
        """Return what prepares a plan's launches."""
        return GpuLauncher(GpuRows(self, Stream(self.cupy, self.index, self.current_stream, self.exchange)))

    def update(
        self,
        variant: Variant,
        size: int,
        addresses: Sequence[int],
        strided: dict[int, Strides],
        numbers: Row,
        storage: StorageRow = NO_STORAGE,
        count: int = 0,
    ) -> None:
        """Update a single tensor with parameter, gradient and states at these addresses, after so many steps."""
        # A launch on another stream may not have run yet, so each has its own tables; threads may have own streams.
        key = variant, size, self.current_stream().ptr, threading.get_ident()
        launch = self.cache.pop(key, None) or self._launch_alone(variant, size)
        rows = np.zeros((1, HYPERS))
        rows[0, : len(numbers)] = numbers
        launch.rows.begin(None)
        if launch.stream.capturing:
            raise RuntimeError(NO_CAPTURE)
        launch.rows.take(rows)
        launch.write_params(addresses[:1])
        launch.write_entries([Entry(0, 0, addresses[2:], storage)])
        launch.write_count(count)
        launch.write_gradients(np.array(addresses[1:2]), strided)
        launch()
        self.cache.put(key, launch)

    def update_rows(
        self, variant: Variant, size: int, addresses: Sequence[int], numbers: Row, given: GivenThere
    ) -> None:
        """Update rows of a single table with parameter and states at these addresses, and wait for their check."""
        key = "rows", variant, size, self.current_stream().ptr, threading.get_ident()
        launch: RowsLaunch = self.cache.pop(key, None) or self._prepared(self.open().launch_rows(variant, size))
        rows = np.zeros((1, HYPERS))
        rows[0, : len(numbers)] = numbers
        launch.rows.begin(Checked(launch.check))
        launch.rows.take(rows)
        launch.write_params(addresses[:1])
        launch.write_entries([Entry(0, 0, addresses[1:], NO_STORAGE)])
        launch.take(given)
        launch()
        launch.check.refuse()
        self.cache.put(key, launch)

    def _launch_alone(self, variant: Variant, size: int) -> GpuLaunch:
        if Stream(self.cupy, self.index, self.current_stream).capturing:
            raise RuntimeError(NO_CAPTURE)
        launch: GpuLaunch = self._prepared(self.open().launch(variant, [size]))
        return launch

    def _prepared(self, launch: Any) -> Any:
        """Return a launch, ready for one hyper row."""
        launch.prepare(1)
        return launch
