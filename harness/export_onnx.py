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
from typing import TYPE_CHECKING, Any

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, MANIFEST, MANIFEST_SCHEMA, Artifact, Variant, open_artifact
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.documents import read_json_object, write_json
from harness.errors import ArtifactError, CheckpointError, DocumentError, UsageError, one_line
from harness.evidence import VERSIONED_PACKAGES, machine_and_versions
from harness.instruction_sets import check_cpu
from harness.manifest import changed_files, write_manifest
from harness.progress import Progress, Silence
from harness.quiet import quiet_libraries
from harness.serving import VariantEntry
from harness.tagging import LabelledSet

if TYPE_CHECKING:
    from harness.quantize import Int8Order

_STEPS = 4


def export_to_onnx(
    model_path: str | Path,
    output_path: str | Path,
    quantize: bool | str = False,  # noqa: FBT001, FBT002  # the signature of DESIGN §4
    *,
    target: str | None = None,
    calibration: Sequence[str] | LabelledSet | None = None,
    search_budget_s: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint, and quantize it if asked.

    Args:
        model_path: the folder of a fine-tuned token classifier.
        output_path: where the export goes; an export that is there already is replaced, as a whole.
        quantize: write an INT8 `model_quantized.onnx` beside `model.onnx`: True, a recipe's name, `auto`, or the path of a
            manifest whose recipe to use.
        target: which CPUs the INT8 model is for (`every`, `avx2`, `avx512`, `avx512_vnni`, `arm64`).
        calibration: real queries from which the INT8 activation ranges are taken, labelled ones for `auto`; by default
            bus queries, which suit the reference domain.
        search_budget_s: for `auto`: after so many seconds no measurement is begun.
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
    order = None
    if quantize is not False:
        from harness.quantize import order_int8

        # refuses what is unknown before the work, not after it
        order = order_int8(quantize, target, search_budget_s)
        if order.recipe is None and calibration is not None and not isinstance(calibration, LabelledSet):
            message = "a search for a recipe compares labels. Name labelled queries (--calibration FILE), or a recipe."
            raise UsageError(message)
    with staging_folder(output) as staging:
        write_export(checkpoint, staging, progress)
        int8 = None
        if order is not None:
            int8 = _quantize(staging, checkpoint, order, calibration, progress)
        write_unjudged_manifest(staging, checkpoint, int8)
        replace_folder(staging, output)
    progress.line(f"{output}: exported, unjudged. Nothing has compared it with {checkpoint.folder} yet.")
    return output


def _quantize(
    staging: Path,
    checkpoint: Checkpoint,
    order: Int8Order,
    calibration: Sequence[str] | LabelledSet | None,
    progress: Progress,
) -> VariantEntry:
    from harness.quantize import RecipeData, calibration_texts, default_recipe_data, quantize_model, recipe_data

    progress.line("quantize to INT8 …")
    if calibration is None:
        data = default_recipe_data(checkpoint.labels, progress)
    elif isinstance(calibration, LabelledSet):
        data = recipe_data(calibration, parted=order.parted)
    else:
        texts = calibration_texts(calibration, parted=order.parted)
        data = RecipeData(texts, LabelledSet("calibration", ()))
    made = quantize_model(staging, data, order, progress=progress)
    if made.outcome is not None:
        from harness.search.report import print_search

        print_search(made.outcome)
    return made.entry


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


def write_unjudged_manifest(folder: Path, checkpoint: Checkpoint, int8: VariantEntry | None) -> None:
    """Write the manifest of a folder that nothing has judged yet."""
    import onnx

    from harness.saturation import certify

    fp32 = onnx.load(str(folder / Variant.FP32.file_name))
    variants = {Variant.FP32: VariantEntry(cpu=certify(fp32, folder).entry())}
    if int8 is not None:
        variants[Variant.INT8] = int8
    write_manifest(
        folder,
        default_variant=Variant.FP32 if int8 is None else Variant.INT8,
        reference_digest=checkpoint.digest(),
        versions=machine_and_versions(VERSIONED_PACKAGES),
        variants=variants,
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
    problems = [*changed_files(artifact), *_wrong_cpu(artifact)]
    try:
        answers = [dict(answer) for answer in NERInference(artifact.folder).batch_extract_detailed(list(queries))]
    except ArtifactError as err:
        if not problems:
            raise
        # what was changed is the news; that it does not run any more, the rest of it
        answers, problems = [], [*problems, str(err)]
    decision = str((artifact.manifest or {}).get("decision"))
    return Verification(decision, tuple(answers), tuple(problems))


def _wrong_cpu(artifact: Artifact) -> list[str]:
    """List the variants whose numbers are not right on this CPU, by what the manifest says of them."""
    problems = []
    for variant in artifact.variants:
        try:
            check_cpu(artifact.entry(variant).cpu, artifact.model_path(variant).name)
        except ArtifactError as err:
            problems.append(str(err))
    return problems


def main() -> int:
    """Run `harness export` under the module's own name."""
    import sys

    from harness.cli import main as harness_main

    return harness_main(["export", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
