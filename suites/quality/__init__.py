"""Placeholder."""

from harness.suite import Suite

SUITE = Suite("quality", ())
