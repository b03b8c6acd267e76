"""The `latency` suite: is the export as much faster, quicker to start and smaller in memory as it has to be?

What is worth gating is a ratio, measured in one run with its two sides taking turns, because absolute times on
a shared machine say more about the neighbours than about the model. Absolute numbers are recorded for people.
Whether the answers are right is for other suites.

Ratios of calls are recorded as the upper ends of 99 % intervals, so noise counts against the candidate. The limits
stand in the policy, none here.
"""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="latency",
    measures=(
        Promise("single_query_ratio_to_reference", Unit.RATIO),
        Promise("batch_ratio_to_reference", Unit.RATIO),
        Promise("ratio_to_fp32", Unit.RATIO),
        Promise("p50_ms", Unit.MILLISECOND),
        Promise("p95_ms", Unit.MILLISECOND),
        Promise("throughput", Unit.QUERIES_PER_SECOND),
        Promise("cold_start_ratio", Unit.RATIO),
        Promise("cold_start_ms", Unit.MILLISECOND),
        Promise("peak_memory_ratio", Unit.RATIO),
        Promise("peak_memory_mib", Unit.MEBIBYTE),
    ),
)
