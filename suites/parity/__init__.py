"""Does the export compute what the PyTorch model computes, on every shape of input?"""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="parity",
    measures=(
        # on every labelled query
        Promise("compared_words", Unit.COUNT),
        Promise("tokenization_differences", Unit.COUNT),
        Promise("non_finite_logits", Unit.COUNT),
        Promise("max_logit_difference", Unit.LOGIT),
        Promise("p99_logit_difference", Unit.LOGIT),
        Promise("mean_logit_difference", Unit.LOGIT),
        Promise("relative_logit_difference", Unit.RATIO),
        Promise("label_agreement", Unit.SHARE),
        Promise("entity_agreement", Unit.SHARE),
        Promise("largest_flipped_margin", Unit.LOGIT),
        # alone, in company, and with more padding
        Promise("batch_logit_difference", Unit.LOGIT),
        Promise("batch_dependent_queries", Unit.COUNT),
        # on lengths from 1 token to the maximum, and on unusual padding
        Promise("failed_shapes", Unit.COUNT),
        Promise("length_logit_difference", Unit.LOGIT),
        Promise("length_label_agreement", Unit.SHARE),
        Promise("left_padding_logit_difference", Unit.LOGIT),
        Promise("left_padding_label_agreement", Unit.SHARE),
        Promise("masked_row_non_finite_logits", Unit.COUNT),
        Promise("truncated_queries", Unit.COUNT),
    ),
)
