"""Makes U, the usual recipe: optimum's ORTQuantizer with `avx512_vnni`, dynamic, per tensor."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.artifact import Variant, file_digest, open_artifact
from harness.quiet import quiet_libraries

_OTHERS = (".json", ".txt", ".model")


def usual_recipe(candidate: Path, cache: Path) -> Path:
    """Quantize the candidate's FP32 file the usual way, once per file, and give the folder with it.

    Raises:
        ArtifactError: the candidate has no FP32 file.
    """
    source = open_artifact(candidate).model_path(Variant.FP32)
    target = cache / f"usual-{file_digest(source).removeprefix('sha256:')[:16]}"
    if not (target / Variant.INT8.file_name).is_file():
        target.mkdir(parents=True, exist_ok=True)
        # optimum refuses a folder that holds a quantized file already
        for path in candidate.iterdir():
            if path.suffix in _OTHERS and path.name != "manifest.json":
                shutil.copyfile(path, target / path.name)
        _quantize(source, target)
    return target


def _quantize(source: Path, target: Path) -> None:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from transformers import AutoConfig

    with quiet_libraries():
        quantizer = ORTQuantizer(source, config=AutoConfig.from_pretrained(target, local_files_only=True))
        recipe = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
        quantizer.quantize(save_dir=target, quantization_config=recipe, file_suffix="quantized")
