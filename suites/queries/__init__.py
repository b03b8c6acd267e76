"""Judges a candidate on generated queries: the data's own grammar, mutations of it, and any Unicode."""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="queries",
    measures=(
        # what was asked
        Promise("examples", Unit.COUNT),
        Promise("relation_checks", Unit.COUNT),
        # what no query may do to any variant
        Promise("failed_queries", Unit.COUNT),
        Promise("tokenization_differences", Unit.COUNT),
        Promise("offset_violations", Unit.COUNT),
        Promise("nondeterministic_queries", Unit.COUNT),
        Promise("batch_dependent_queries", Unit.COUNT),
        Promise("max_batch_logit_difference", Unit.LOGIT),
        # how near the answers are to the reference's
        Promise("max_logit_difference", Unit.LOGIT),
        Promise("grammar_label_agreement", Unit.SHARE),
        Promise("grammar_entity_agreement", Unit.SHARE),
        Promise("grammar_largest_flipped_margin", Unit.LOGIT),
        Promise("arbitrary_label_agreement", Unit.SHARE),
        Promise("arbitrary_largest_flipped_margin", Unit.LOGIT),
        Promise("broken_relations", Unit.SHARE),
        # the shipped bytes in a process without PyTorch and transformers
        Promise("replayed_queries", Unit.COUNT),
        Promise("replay_differences", Unit.COUNT),
    ),
)
