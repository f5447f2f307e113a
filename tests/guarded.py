"""An array between guards, at any alignment; no tests here."""

import numpy as np

GUARD = 0x5A
SIDE = 64  # bytes, on either side and at least


class Guarded:
    """A copy of an array that begins `offset` elements after a multiple of 64 bytes, with guards on both sides."""

    def __init__(self, array, offset=0):
        self.whole = np.full(array.nbytes + 4 * SIDE + offset * array.itemsize, GUARD, np.uint8)
        self.start = SIDE - self.whole.ctypes.data % SIDE + SIDE + offset * array.itemsize
        self.array = self.whole[self.start : self.start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array

    def assert_kept(self):
        """Assert that nothing was written beside the array."""
        assert (self.whole[: self.start] == GUARD).all()
        assert (self.whole[self.start + self.array.nbytes :] == GUARD).all()
