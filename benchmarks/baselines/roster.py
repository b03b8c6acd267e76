"""Who takes part: the contenders of each kind of row, from the folders and the Pythons that the command names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines.contender import packed_feed
from baselines.crew import FOLDER, Spec
from harness.artifact import Variant, file_digest
from harness.documents import write_text
from harness.tagging import EncodedQuery, LabelledSet, pad

USUAL = "U: onnxruntime, the usual INT8"
PIPELINE = "transformers pipeline on PyTorch"
ORTMODEL_INT8 = "HF tokenizer + ORTModel, U"
OURS = {"fp32": "our runtime FP32", "int8": "our runtime INT8"}
EXTRACT = {"fp32": "extract() FP32", "int8": "extract() INT8"}
SPACY = "spaCy, blank, trained here"
NNCF = "OpenVINO INT8 (NNCF)"
_CALIBRATION_ROWS = 300


@dataclass(frozen=True, slots=True)
class Roster:
    """What contenders are made from.

    Attributes:
        checkpoint: the PyTorch model's folder.
        candidate: our export's folder.
        variants: which of its variants there are.
        usual: the folder with the usual recipe's `model_quantized.onnx`.
        openvino_python: a Python with openvino and nncf, or None.
        spacy_python: a Python with spaCy, or None.
        nncf_cache: where NNCF's file is kept.
        spacy_cache: where spaCy's pipeline is kept, with its training data.
        calibration: prepared rows for NNCF, as JSON.
    """

    checkpoint: Path
    candidate: Path
    variants: tuple[str, ...]
    usual: Path
    openvino_python: str | None
    spacy_python: str | None
    nncf_cache: Path
    spacy_cache: Path
    calibration: tuple[Mapping[str, object], ...]

    @property
    def fp32_file(self) -> Path:
        """The export that the other runtimes read too."""
        return self.candidate / Variant.FP32.file_name

    def models(self) -> list[Spec]:
        """List those who run a model on prepared inputs; the usual recipe is the baseline."""
        return [
            self._pytorch("PyTorch eager", "eager"),
            self._pytorch("torch.compile", "compiled"),
            self._pytorch("PyTorch dynamic INT8", "dynamic"),
            self._ort("optimum ORTModel FP32", "ortmodel", self.candidate, Variant.FP32),
            self._ort("onnxruntime FP32, default options", "session", self.candidate, Variant.FP32, reopens=True),
            self._ort("optimum ORTModel INT8, U", "ortmodel", self.usual, Variant.INT8),
            self._ort(USUAL, "session", self.usual, Variant.INT8, required=True, reopens=True),
            *self._openvino(),
            *(self._lean(OURS[variant], variant) for variant in self.variants),
        ]

    def accurate(self) -> list[Spec]:
        """List those whose logits are compared: each model once."""
        twice = {"torch.compile", "optimum ORTModel FP32", "optimum ORTModel INT8, U", "PyTorch eager"}
        return [spec for spec in self.models() if spec.name not in twice]

    def texts(self) -> list[Spec]:
        """List those who go from a text to its entities; transformers' pipeline on PyTorch is the baseline."""
        return [
            self._pytorch(PIPELINE, "eager", required=True),
            self._ort("transformers pipeline over ORTModel FP32", "pipeline", self.candidate, Variant.FP32),
            self._ort("transformers pipeline over ORTModel, U", "pipeline", self.usual, Variant.INT8),
            self._ort("HF tokenizer + ORTModel FP32", "ortmodel", self.candidate, Variant.FP32),
            self._ort(ORTMODEL_INT8, "ortmodel", self.usual, Variant.INT8),
            *self.spacy(),
            *self._extract_openvino(),
            *(self._lean(EXTRACT[variant], variant) for variant in self.variants),
        ]

    def bulk(self) -> list[Spec]:
        """List those who answer many texts at once, on all cores; ORTModel in unsorted batches is the baseline."""
        return [
            self._ort(ORTMODEL_INT8, "ortmodel", self.usual, Variant.INT8, required=True, threads=0),
            self._ort("transformers pipeline over ORTModel, U", "pipeline", self.usual, Variant.INT8, threads=0),
            *self.spacy(),
            *(self._lean(f"batch_extract() {variant.upper()}", variant, threads=0) for variant in self.variants),
        ]

    def leans(self) -> list[Spec]:
        """List our own variants."""
        return [self._lean(EXTRACT[variant], variant) for variant in self.variants]

    def duel(self) -> Spec:
        """Name the process that holds our INT8 session and the usual one."""
        usual = str(self.usual / Variant.INT8.file_name)
        settings = {"folder": str(self.candidate), "variant": "int8", "usual": usual}
        return Spec("both in one process", "duel", settings, required=True)

    def spacy(self) -> list[Spec]:
        """List spaCy, if there is a Python that has it."""
        if self.spacy_python is None:
            return []
        settings = {"cache": str(self.spacy_cache), "train": str(self.spacy_cache / "train.json")}
        return [Spec(SPACY, "spacy_blank", settings, self.spacy_python, reopens=False)]

    def _pytorch(self, name: str, kind: str, *, required: bool = False) -> Spec:
        settings = {"kind": kind, "folder": str(self.checkpoint)}
        return Spec(name, "pytorch", settings, required=required, reopens=False)

    def _ort(
        self, name: str, kind: str, folder: Path, variant: Variant, *, required: bool = False, reopens: bool = False,
        threads: int = 1,
    ) -> Spec:  # fmt: skip
        settings = {"kind": kind, "folder": str(folder), "file": variant.file_name}
        return Spec(name, "ortmodel", settings, threads=threads, required=required, reopens=reopens)

    def _lean(self, name: str, variant: str, threads: int = 1) -> Spec:
        return Spec(name, "lean", {"folder": str(self.candidate), "variant": variant}, threads=threads, required=True)

    def _openvino(self) -> list[Spec]:
        if self.openvino_python is None:
            return []
        file = {"file": str(self.fp32_file)}
        made = {**file, "cache": str(self.nncf_cache), "calibration": list(self.calibration)}
        return [
            Spec("OpenVINO FP32", "intel", {**file, "precision": "f32"}, self.openvino_python),
            Spec("OpenVINO, its own precision", "intel", file, self.openvino_python),
            Spec(NNCF, "intel", made, self.openvino_python),
        ]

    def _extract_openvino(self) -> list[Spec]:
        if self.openvino_python is None:
            return []
        settings = {"folder": str(self.candidate), "variant": self.variants[-1], "runtime": "openvino"}
        found = {"PYTHONPATH": str(FOLDER.parent)}
        return [Spec("extract() through OpenVINO", "lean", settings, self.openvino_python, environment=found)]


def calibration_rows(queries: Sequence[EncodedQuery], pad_token_id: int) -> tuple[Mapping[str, object], ...]:
    """Prepare queries for NNCF, one a row, evenly from all of them."""
    step = max(len(queries) // _CALIBRATION_ROWS, 1)
    chosen = [query for query in queries[::step] if query.windows][:_CALIBRATION_ROWS]
    return tuple(packed_feed(pad(query.windows[:1], pad_token_id)._asdict()) for query in chosen)


def kept_apart(cache: Path, prefix: str, *parts: str) -> Path:
    """Name a folder of the cache by what was put into its content."""
    return cache / f"{prefix}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def nncf_folder(cache: Path, source: Path, calibration: Sequence[Mapping[str, object]]) -> Path:
    """Name where NNCF's file of this model with this calibration is kept."""
    return kept_apart(cache, "nncf", file_digest(source), json.dumps(calibration))


def spacy_folder(cache: Path, train: LabelledSet) -> Path:
    """Name where the spaCy pipeline of these queries is kept, and write them there for it."""
    rows = [[query.text, [[span.start, span.end, span.label] for span in query.spans]] for query in train.queries]
    text = json.dumps(rows)
    folder = kept_apart(cache, "spacy", text)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "train.json", text)
    return folder
