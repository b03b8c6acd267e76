"""Does the export find the entities, as many as the PyTorch model does?"""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="quality",
    measures=(
        Promise("labelled_queries", Unit.COUNT),
        Promise("f1_micro", Unit.F1),
        Promise("f1_macro", Unit.F1),
        Promise("lowest_type_f1", Unit.F1),
        Promise("f1_micro_loss", Unit.F1),
        Promise("f1_micro_loss_bound", Unit.F1),
        Promise("worst_type_f1_loss", Unit.F1),
        Promise("worst_type_f1_loss_bound", Unit.F1),
        Promise("token_accuracy", Unit.SHARE),
    ),
)
