"""What the rows are called that more than one module speaks of."""

from __future__ import annotations

from baselines.roster import ORTMODEL_INT8

MODEL = "latency of the model alone, batch 1, each in its process / U"
DUEL = "latency of the model alone, batch 1, both in one process / U"
TEXT = "a text to its entities / transformers pipeline on PyTorch"
BARE = "extract() / the bare session run inside it"
MEAN_DIFFERENCE = "mean |logit difference| to PyTorch"
CHANGED = "queries whose labels differ from PyTorch's"
COMPANY_LABELS = "queries whose labels batch mates or padding change"
COMPANY_LOGITS = "largest logit difference that batch mates or padding make"
LEFT = "left padding: queries whose labels differ from PyTorch's with the same padding"
F1 = "strict entity F1"
THROUGHPUT = f"throughput on all cores / {ORTMODEL_INT8}"
