"""Two ways to answer, timed side by side: rounds, the queries of each block, and what the timings say of their ratio.

Knows no suite and no model; the latency suite, the recipe search and the benchmarks compare with it. docs/latency.md
says why it measures as it does.
"""
