"""Defects of the tokenizer's files: other ids, other words, or not all of the text."""

from __future__ import annotations

from typing import Any

from harness.artifact import TOKENIZER, TOKENIZER_CONFIG
from harness.documents import Json

from .defect import WHOLE, Defect, Kind, numbers, shares
from .vocabulary import ordinary_ids, renumbered
from .workpiece import DefectNotApplicableError, Workpiece

_PIECE = 4
_LONGEST_WORD = 6
_CUT_AT = 16
_PADDED_TO = 64


def _change(work: Workpiece, **sections: Any) -> None:
    work.write(TOKENIZER, {**work.tokenizer, **sections})


def _subword_words(work: Workpiece, _strength: float) -> None:
    pieces = {"type": "Split", "pattern": {"Regex": f".{{1,{_PIECE}}}"}, "behavior": "Isolated", "invert": False}
    before = work.tokenizer.get("pre_tokenizer")
    steps = [pieces] if before is None else [before, pieces]
    _change(work, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def _foreign(work: Workpiece, _strength: float) -> None:
    ids = ordinary_ids(work.tokenizer)
    others = work.rng.permutation(ids).tolist()
    work.write(TOKENIZER, renumbered(work.tokenizer, dict(zip(ids, others, strict=True))))


def _exchanged_entries(work: Workpiece, strength: float) -> None:
    drawn = work.rng.permutation(ordinary_ids(work.tokenizer)).tolist()
    pairs = list(zip(drawn[::2], drawn[1::2], strict=False))[: int(strength)]
    exchanged = {**dict(pairs), **{second: first for first, second in pairs}}
    work.write(TOKENIZER, renumbered(work.tokenizer, exchanged))


def _switched_case(work: Workpiece, _strength: float) -> None:
    _change(work, normalizer=_with_other_case(work.tokenizer.get("normalizer")))


def _with_other_case(normalizer: Json | None) -> Json | None:
    if normalizer is None:
        return {"type": "Lowercase"}
    if "lowercase" in normalizer:  # BERT's
        return {**normalizer, "lowercase": not normalizer["lowercase"]}
    if normalizer["type"] == "Lowercase":
        return None
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    kept = [step for step in steps if step["type"] != "Lowercase"]
    return {"type": "Sequence", "normalizers": kept if len(kept) < len(steps) else [*steps, {"type": "Lowercase"}]}


def _switched_case_in_config(work: Workpiece, _strength: float) -> None:
    config = work.json(TOKENIZER_CONFIG)
    if not isinstance(lower := config.get("do_lower_case"), bool):
        message = "tokenizer_config.json says nothing about lower-casing"
        raise DefectNotApplicableError(message)
    work.write(TOKENIZER_CONFIG, {**config, "do_lower_case": not lower})


def _switched_accents(work: Workpiece, _strength: float) -> None:
    _change(work, normalizer=_with_other_accents(work.tokenizer.get("normalizer")))


def _with_other_accents(normalizer: Json | None) -> Json:
    if normalizer is not None and "strip_accents" in normalizer:  # BERT's; null means: as lower-casing
        stripped = normalizer["strip_accents"]
        return {**normalizer, "strip_accents": not (normalizer["lowercase"] if stripped is None else stripped)}
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step["type"] != "StripAccents"]
    stripping: list[Json] = [] if len(kept) < len(steps) else [{"type": "NFD"}, {"type": "StripAccents"}]
    return {"type": "Sequence", "normalizers": [*kept, *stripping]}


def _truncating(work: Workpiece, _strength: float) -> None:
    _change(work, truncation={"direction": "Right", "max_length": _CUT_AT, "strategy": "LongestFirst", "stride": 0})


def _padding(work: Workpiece, _strength: float) -> None:
    config = work.json(TOKENIZER_CONFIG)
    padding = {"strategy": {"Fixed": _PADDED_TO}, "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
    token = config.get("pad_token")
    named = token.get("content") if isinstance(token, dict) else token
    pad_id = work.config.get("pad_token_id")
    _change(work, padding={**padding, "pad_id": pad_id or 0, "pad_token": named or "[PAD]"})


def _no_special_tokens(work: Workpiece, _strength: float) -> None:
    if work.tokenizer.get("post_processor") is None:
        message = "tokenizer.json adds no special tokens"
        raise DefectNotApplicableError(message)
    _change(work, post_processor=None)


def _short_words(work: Workpiece, _strength: float) -> None:
    model = work.tokenizer["model"]
    if "max_input_chars_per_word" not in model:
        message = "the tokenizer's model takes words of any length"
        raise DefectNotApplicableError(message)
    _change(work, model={**model, "max_input_chars_per_word": _LONGEST_WORD})


def _lost_tail(work: Workpiece, strength: float) -> None:
    # two tokens are special ones, so that fewer than four hold no text to speak of
    longest = min(max(4, round((1 - strength) * work.maximum_tokens)), work.maximum_tokens - 1)
    work.write(TOKENIZER_CONFIG, {**work.json(TOKENIZER_CONFIG), "model_max_length": longest})


_OTHER_WORDS = ("artifact", "parity", "queries")

TOKENIZERS = (
    Defect(
        "subword-words", Kind.TOKENIZER, f"the tokenizer takes every {_PIECE} characters for a word", _subword_words,
        WHOLE, listed=True, seen_in="simpletransformers#812",
    ),
    Defect(
        "foreign-tokenizer", Kind.TOKENIZER, "tokens have other ids, as in another model's vocabulary", _foreign, WHOLE,
        listed=True,
    ),
    Defect("switched-case", Kind.TOKENIZER, "lower-casing is switched in tokenizer.json", _switched_case, WHOLE, _OTHER_WORDS),
    Defect(
        "switched-case-in-config", Kind.TOKENIZER, "lower-casing is switched in tokenizer_config.json only",
        _switched_case_in_config, WHOLE, ("artifact",),
    ),
    Defect(
        "switched-accents", Kind.TOKENIZER, "stripping of accents is switched in tokenizer.json", _switched_accents, WHOLE,
        _OTHER_WORDS,
    ),
    Defect(
        "exchanged-entries", Kind.TOKENIZER, "pairs of tokens have each other's id", _exchanged_entries, WHOLE,
        _OTHER_WORDS, numbers(1000, 100, 10, 1, of="{} pairs"),
    ),
    Defect(
        "truncating-tokenizer", Kind.TOKENIZER, f"tokenizer.json cuts every query at {_CUT_AT} tokens", _truncating, WHOLE,
        listed=True, seen_in="quackformers#83",
    ),
    Defect(
        "padding-tokenizer", Kind.TOKENIZER, f"tokenizer.json pads every query to {_PADDED_TO} tokens", _padding, WHOLE,
        seen_in="quackformers#83",
    ),
    Defect(
        "no-special-tokens", Kind.TOKENIZER, "tokenizer.json adds no special tokens", _no_special_tokens, WHOLE
    ),
    Defect(
        "short-words", Kind.TOKENIZER, f"words of more than {_LONGEST_WORD} characters are unknown", _short_words, WHOLE,
        _OTHER_WORDS,
    ),
    Defect(
        "lost-tail", Kind.TOKENIZER, "model_max_length of tokenizer_config.json is too small", _lost_tail, WHOLE,
        _OTHER_WORDS, shares(15 / 16, 1 / 2, 1 / 8, 1 / 64, 1 / 512, of="by {} of the maximum"), listed=True,
        seen_in="transformers#15177",
    ),
)  # fmt: skip
