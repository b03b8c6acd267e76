"""How often intervals hold the truth: Wilcoxon's signed-rank interval beside two of the bootstrap, on simulated rounds.

    python benchmarks/intervals.py

Rounds scatter around 0 as log ratios do: normally, with heavy tails, with one in seven spoilt to either side, or with one
in ten slowed on the subject's side only, which no interval can tell from a slower subject.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness.shift import location

Values = NDArray[np.float64]
Interval = tuple[float, float]
DRAWS = 2_000
SPREAD = 0.02


def signed_rank(values: Values, confidence: float, _random: np.random.Generator) -> Interval:
    """The interval that the latency suite uses."""
    found = location(list(values), confidence)
    return (-np.inf if found.low is None else found.low, np.inf if found.high is None else found.high)


def percentile(values: Values, confidence: float, random: np.random.Generator) -> Interval:
    """The bootstrap's percentiles of the Hodges-Lehmann estimate."""
    drawn = values[random.integers(0, len(values), (DRAWS, len(values)))]
    one, other = np.triu_indices(len(values))
    return _ends(np.median((drawn[:, one] + drawn[:, other]) / 2, axis=1), confidence)


def studentised(values: Values, confidence: float, random: np.random.Generator) -> Interval:
    """The bootstrap of the mean's t statistic (Efron & Tibshirani, An Introduction to the Bootstrap, section 12.5)."""
    drawn = values[random.integers(0, len(values), (DRAWS, len(values)))]
    root = np.sqrt(len(values))
    deviation = np.maximum(drawn.std(axis=1, ddof=1), 1e-12) / root
    low, high = _ends((drawn.mean(axis=1) - values.mean()) / deviation, confidence)
    scale = values.std(ddof=1) / root
    return values.mean() - high * scale, values.mean() - low * scale


def _ends(values: Values, confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


METHODS: dict[str, Callable[[Values, float, np.random.Generator], Interval]] = {
    "signed rank": signed_rank,
    "percentile": percentile,
    "studentised": studentised,
}


def rounds(kind: str, count: int, random: np.random.Generator) -> Values:
    """Draw the log ratios of so many rounds around 0."""
    if kind == "heavy tails":
        tailed: Values = SPREAD / 2 * random.standard_t(3, count)
        return tailed
    values: Values = SPREAD * random.standard_normal(count)
    if kind == "spoilt":
        values = values + (random.random(count) < 1 / 7) * random.choice([-1, 1], count) * random.uniform(
            0.1, 0.3, count
        )
    if kind == "slowed":
        values = values + (random.random(count) < 0.1) * random.uniform(0.05, 0.3, count)
    return values


def main() -> None:
    """Print coverage and median width of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=int, default=1_000, help="simulated of each (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=0.99)
    options = parser.parse_args()
    random = np.random.default_rng(1)
    for kind in ("normal", "heavy tails", "spoilt", "slowed"):
        for count in (12, 24, 48):
            samples = [rounds(kind, count, random) for _ in range(options.intervals)]
            texts = []
            for name, method in METHODS.items():
                ends = np.array([method(values, options.confidence, random) for values in samples])
                covered = np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
                texts.append(f"{name} {covered:.3f} (width {np.median(ends[:, 1] - ends[:, 0]):.3f})")
            print(f"{kind}, {count} rounds: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
