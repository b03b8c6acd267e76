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
        Promise("confident_flips", Unit.COUNT),
        Promise("largest_flipped_margin", Unit.LOGIT),
        # alone, in company, and with more padding
        Promise("batch_reference_logit_difference", Unit.LOGIT),
        Promise("batch_logit_difference", Unit.LOGIT, in_manifest=True),
        Promise("batch_dependent_queries", Unit.COUNT, in_manifest=True),
        # on lengths from 1 token to more than the maximum
        Promise("failed_shapes", Unit.COUNT),
        Promise("length_logit_difference", Unit.LOGIT),
        Promise("length_label_agreement", Unit.SHARE),
        Promise("worst_position_difference", Unit.RATIO),
        Promise("silent_overlong_rows", Unit.COUNT),
        Promise("truncated_queries", Unit.COUNT),
        # on unusual padding
        Promise("left_padding_logit_difference", Unit.LOGIT, in_manifest=True),
        Promise("left_padding_label_agreement", Unit.SHARE, in_manifest=True),
        Promise("left_padding_sensitivity", Unit.LOGIT, in_manifest=True),
        Promise("left_padding_excess_sensitivity", Unit.LOGIT, in_manifest=True),
        Promise("masked_row_non_finite_logits", Unit.COUNT, in_manifest=True),
        Promise("masked_row_logit_difference", Unit.LOGIT, in_manifest=True),
        # at other levels of graph optimization
        Promise("optimization_logit_difference", Unit.LOGIT),
    ),
)
