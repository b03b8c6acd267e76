"""Are the files of the export whole, consistent, and what they say they are?"""

from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite(
    name="artifact",
    measures=(
        Promise("missing_files", Unit.COUNT, per_variant=False),
        Promise("unexpected_files", Unit.COUNT, per_variant=False),
        Promise("manifest_differences", Unit.COUNT, per_variant=False),
        Promise("label_differences", Unit.COUNT, per_variant=False),
        Promise("tokenizer_differences", Unit.COUNT, per_variant=False),
        Promise("serving_differences", Unit.COUNT, per_variant=False),
        Promise("length_differences", Unit.COUNT, per_variant=False),
        Promise("load_failures", Unit.COUNT),
        Promise("checker_failures", Unit.COUNT),
        Promise("external_data_problems", Unit.COUNT),
        Promise("frozen_axes", Unit.COUNT),
        Promise("input_differences", Unit.COUNT),
        Promise("foreign_operators", Unit.COUNT),
        Promise("opset_version", Unit.COUNT),
        Promise("ir_version", Unit.COUNT),
        Promise("quantized_weight_share", Unit.SHARE),
        Promise("saturating_products", Unit.COUNT),
        Promise("unusable_scales", Unit.COUNT),
        Promise("size_ratio_to_reference", Unit.RATIO),
        Promise("file_size", Unit.MEBIBYTE),
    ),
)
