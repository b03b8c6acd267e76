"""What the serving benchmark measures, one module per kind of row; contenders come from `baselines`.

The modules get contenders that are open already, so their arithmetic and their order of calls are tested with fakes.
"""
