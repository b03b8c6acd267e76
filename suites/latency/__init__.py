"""The `latency` suite: is the export as much faster, quicker to start and smaller in memory as it has to be?

What is worth gating is a ratio, measured in one run with its two sides taking turns, because absolute times on
a shared machine say more about the neighbours than about the model. Absolute numbers are recorded for people, and for
the policy of a machine that does nothing else. Whether the answers are right is for other suites.

Each time has an interval, so a limit is kept or broken only where the whole interval is. The limits stand in the
policy, none here. The method, with its error rates and sources: docs/latency.md.
"""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="latency",
    measures=(
        Promise("single_query_ratio_to_reference", Unit.RATIO),
        Promise("short_query_ratio_to_reference", Unit.RATIO),
        Promise("typical_query_ratio_to_reference", Unit.RATIO),
        Promise("long_query_ratio_to_reference", Unit.RATIO),
        Promise("batch_ratio_to_reference", Unit.RATIO),
        Promise("ratio_to_fp32", Unit.RATIO, optional=True),
        Promise("ratio_to_last_release", Unit.RATIO, against_baseline=True),
        Promise("hot_ratio_to_reference", Unit.RATIO),
        Promise("idle_ratio_to_reference", Unit.RATIO),
        Promise("all_threads_ratio", Unit.RATIO, per_variant=False, optional=True),
        Promise("p50_ms", Unit.MILLISECOND),
        Promise("p95_ms", Unit.MILLISECOND),
        Promise("p99_ms", Unit.MILLISECOND, optional=True),
        Promise("throughput", Unit.QUERIES_PER_SECOND),
        Promise("cold_start_ratio", Unit.RATIO),
        Promise("cold_start_ms", Unit.MILLISECOND),
        Promise("peak_memory_ratio", Unit.RATIO),
        Promise("peak_memory_mib", Unit.MEBIBYTE),
        Promise("ortmodel_cold_start_ms", Unit.MILLISECOND, per_variant=False, optional=True),
        Promise("ortmodel_peak_memory_mib", Unit.MEBIBYTE, per_variant=False, optional=True),
        Promise("runtime_install_mib", Unit.MEBIBYTE, per_variant=False),
        Promise("pytorch_install_mib", Unit.MEBIBYTE, per_variant=False),
        Promise("install_size_ratio", Unit.RATIO, per_variant=False),
    ),
)
