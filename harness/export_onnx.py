"""From a PyTorch checkpoint to a folder that runs without PyTorch.

Exports and, if asked, quantizes; judges nothing. What it writes says of itself that it is unjudged.
Also runs as `python -m harness.export_onnx`, with the flags of `harness export`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, MANIFEST, MANIFEST_SCHEMA, Variant, open_artifact
from harness.candidate import serving_settings
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.documents import read_json_object, write_json
from harness.errors import ArtifactError, CheckpointError, DocumentError, UsageError, one_line
from harness.evidence import VERSIONED_PACKAGES, machine_and_versions
from harness.manifest import changed_files, write_manifest
from harness.progress import Progress, Silence
from harness.quiet import quiet_libraries

_STEPS = 4


def export_to_onnx(
    model_path: str | Path,
    output_path: str | Path,
    quantize: bool = False,  # noqa: FBT001, FBT002  # the signature of DESIGN §4
    *,
    target: str | None = None,
    calibration: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint, and quantize it if asked.

    Args:
        model_path: the folder of a fine-tuned token classifier.
        output_path: where the export goes; an export that is there already is replaced, as a whole.
        quantize: write an INT8 `model_quantized.onnx` beside `model.onnx`.
        target: instruction set the INT8 model is for (`avx2`, `avx512`, `avx512_vnni`, `arm64`); by
            default this machine's.
        calibration: real queries from which the INT8 activation ranges are taken; by default bus
            queries, which suit the reference domain.
        progress: who is told of the four steps.

    Returns:
        The output folder.

    Raises:
        CheckpointError: the checkpoint cannot be exported.
        ArtifactError: the output folder cannot be written or holds something else.
        UsageError: output and model folder are the same, or lie in each other.
    """
    progress = progress or Silence()
    checkpoint = open_checkpoint(Path(model_path))
    output = Path(output_path)
    check_output(output, checkpoint.folder)
    _refuse_to_replace_a_release(output)
    if quantize:
        from harness.quantize import recipe_for

        recipe_for(target)  # refuses an unknown target before the work, not after it
    with staging_folder(output) as staging:
        write_export(checkpoint, staging, progress)
        recipe = None
        if quantize:
            from harness.quantize import default_calibration, quantize_model

            progress.line("quantize to INT8 …")
            texts = list(calibration) if calibration else default_calibration(checkpoint.labels, progress)
            recipe = quantize_model(staging, texts, target=target, progress=progress)
        write_unjudged_manifest(staging, checkpoint, recipe)
        replace_folder(staging, output)
    progress.line(f"{output}: exported, unjudged. Nothing has compared it with {checkpoint.folder} yet.")
    return output


def write_export(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write tokenizer, `model.onnx`, `config.json` and the label maps into an empty folder."""
    from harness.reference import load_tokenizer

    def announce(step: int, what: str) -> None:
        progress.line(f"[{step}/{_STEPS}] {what}")

    announce(1, "tokenizer")
    load_tokenizer(checkpoint.folder).save_pretrained(folder)
    announce(2, "export to ONNX through optimum")
    model = _export(checkpoint)
    announce(3, f"save {Variant.FP32.file_name} and {CONFIG}")
    model.save_pretrained(folder)
    announce(4, f"label maps: {len(checkpoint.labels)} labels, from the checkpoint")
    write_label_maps(folder, checkpoint.labels)
    _check_export(folder, checkpoint)


def _export(checkpoint: Checkpoint) -> Any:
    from optimum.onnxruntime import ORTModelForTokenClassification

    from harness.reference import load_model

    with quiet_libraries():
        load_model(checkpoint.folder)  # refuses weights that are missing, which optimum would make up
        try:
            return ORTModelForTokenClassification.from_pretrained(
                checkpoint.folder, export=True, local_files_only=True, trust_remote_code=False
            )
        except Exception as err:  # optimum, torch and transformers raise whatever they like
            message = f"{checkpoint.folder} cannot be exported by optimum: {one_line(err)}"
            raise CheckpointError(message) from err


def write_label_maps(folder: Path, labels: Sequence[str]) -> None:
    """Write the checkpoint's label names wherever an export keeps them."""
    id2label = {str(index): label for index, label in enumerate(labels)}
    label2id = {label: index for index, label in enumerate(labels)}
    config = read_json_object(folder / CONFIG)
    write_json(folder / CONFIG, {**config, "id2label": id2label, "label2id": label2id})
    write_json(folder / ID2LABEL, id2label)
    write_json(folder / LABEL2ID, label2id)


def _check_export(folder: Path, checkpoint: Checkpoint) -> None:
    """Refuse an export that lacks a file, before anything is built on it."""
    artifact = open_artifact(folder)
    if artifact.variants != (Variant.FP32,):
        message = f"optimum wrote no {Variant.FP32.file_name} for {checkpoint.folder}. Is its architecture one that optimum exports?"
        raise CheckpointError(message)


def write_unjudged_manifest(folder: Path, checkpoint: Checkpoint, recipe: dict[str, Any] | None) -> None:
    """Write the manifest of a folder that nothing has judged yet."""
    write_manifest(
        folder,
        default_variant=Variant.FP32 if recipe is None else Variant.INT8,
        reference_digest=checkpoint.digest(),
        versions=machine_and_versions(VERSIONED_PACKAGES),
        quantization=recipe,
        serving=serving_settings(),
    )


def check_output(output: Path, model: Path) -> None:
    """Refuse an output folder that cannot or must not be written, before any work is done.

    Raises:
        UsageError: it is the model's folder, lies in it or holds it.
        ArtifactError: it cannot be written, or holds files that no export left there.
    """
    resolved, source = output.resolve(), model.resolve()
    if resolved == source or source in resolved.parents or resolved in source.parents:
        message = f"the output folder {output} and the model folder {model} are the same or lie in each other. Name another --output."
        raise UsageError(message)
    if output.exists() and not output.is_dir():
        message = f"the output {output} is a file. Name a folder (--output DIR)."
        raise ArtifactError(message)
    if output.is_dir() and any(output.iterdir()) and not _is_ours(output):
        message = f"the output folder {output} holds files that no release or export of the harness left there. Empty it, or name another."
        raise ArtifactError(message)
    check_writable(output.parent)


def _is_ours(folder: Path) -> bool:
    """Tell an export from any other folder; browser extensions have a manifest.json too."""
    try:
        return read_json_object(folder / MANIFEST).get("schema") == MANIFEST_SCHEMA
    except DocumentError:
        return False


def _refuse_to_replace_a_release(output: Path) -> None:
    """Keep an export, which nothing has judged, from taking the place of a release that is served."""
    if (output / MANIFEST).is_file() and read_json_object(output / MANIFEST).get("decision") == "ACCEPTED":
        message = (
            f"{output} holds an accepted release, which an unjudged export must not replace. Name another --output."
        )
        raise UsageError(message)


def check_writable(folder: Path) -> None:
    """Try to write into a folder, or into the first folder above it that exists; leaves nothing behind.

    Raises:
        ArtifactError: nothing can be written there.
    """
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as err:
        message = f"{folder} is not writable ({err.strerror or one_line(err)}). Change its permissions or name another folder."
        raise ArtifactError(message) from err


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Make a folder beside the output that is gone afterwards, unless it was renamed into place."""
    made = [place for place in output.parents if not place.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.staging-", dir=output.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for place in made:
            with suppress(OSError):  # not empty: the output is in it
                place.rmdir()


def replace_folder(staging: Path, output: Path) -> None:
    """Put the staged folder where the output is; the old one goes only after the new one stands.

    Raises:
        ArtifactError: the file system refuses; what was there is there again.
    """
    target = output.resolve() if output.is_symlink() else output
    try:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        try:
            _exchange(staging, target, old / "output")
        except BaseException:
            with suppress(OSError):  # if it is not empty, it holds the old output, which could not even be put back
                old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as err:
        message = f"{output} could not be replaced ({err.strerror or one_line(err)}). Name another folder."
        raise ArtifactError(message) from err


def _exchange(staging: Path, target: Path, aside: Path) -> None:
    occupied = target.exists()
    if occupied:
        target.rename(aside)
    try:
        staging.rename(target)
    except BaseException:
        if occupied:
            aside.rename(target)
        raise


@dataclass(frozen=True, slots=True)
class Verification:
    """What a look at a release found."""

    decision: str
    answers: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]


SAMPLE_QUERIES = (
    "AC sleeper bus from Bangalore to Mumbai tomorrow",
    "VRL Non-AC from Chennai to Hyderabad next Friday",
)


def verify_onnx_model(onnx_path: str | Path, queries: Sequence[str] = SAMPLE_QUERIES) -> Verification:
    """Run a release on sample queries and compare its files with its manifest.

    Args:
        onnx_path: the release folder.
        queries: what to ask it.

    Raises:
        ArtifactError: the folder cannot be opened or has no manifest.
    """
    from harness.inference import NERInference

    artifact = open_artifact(Path(onnx_path))
    problems = changed_files(artifact)
    try:
        answers = [dict(answer) for answer in NERInference(artifact.folder).batch_extract_detailed(list(queries))]
    except ArtifactError as err:
        if not problems:
            raise
        # what was changed is the news; that it does not run any more, the rest of it
        answers, problems = [], [*problems, str(err)]
    decision = str((artifact.manifest or {}).get("decision"))
    return Verification(decision, tuple(answers), tuple(problems))


def main() -> int:
    """Run `harness export` under the module's own name."""
    import sys

    from harness.cli import main as harness_main

    return harness_main(["export", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
