"""A workload that never changes: what runs beside the calls to tell a disturbed machine from a slow model."""

from __future__ import annotations

import numpy as np

# Two arrays of 1 MiB: some tenths of a millisecond, on one thread whatever the BLAS, half of it spent on memory.
_NUMBERS = 1 << 18


class Workload:
    """Multiplies, adds up and sorts the same numbers at every call."""

    def __init__(self) -> None:
        """Make the numbers, from a fixed seed."""
        random = np.random.default_rng(20261123)
        self._one = random.standard_normal(_NUMBERS, np.float32)
        self._other = random.standard_normal(_NUMBERS, np.float32)
        self._product = np.empty_like(self._one)
        self._few = random.integers(0, 1 << 30, 1 << 13)

    def __call__(self) -> float:
        """Do it once."""
        np.multiply(self._one, self._other, out=self._product)
        return float(np.add.reduce(self._product)) + float(np.sort(self._few)[0])
