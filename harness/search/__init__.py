"""Find the INT8 recipe that is best for one model: cheap measurements first, then labels, F1 and latency.

Chooses; it does not judge. What it chose is judged by all suites, on queries that it never saw.
"""
