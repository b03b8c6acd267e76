"""The pytest suites that judge a candidate."""
