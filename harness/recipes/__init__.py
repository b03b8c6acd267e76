"""From an FP32 graph to a quantized one, as a recipe says: what can be chosen, and how each choice is carried out.

Judges nothing and measures no time; `harness.search` does, and the suites.
"""
