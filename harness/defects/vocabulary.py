"""Read and change the vocabulary in a `tokenizer.json`, whichever kind of model it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.documents import Json

from .workpiece import DefectNotApplicableError


def token_ids(tokenizer: Json) -> dict[str, int]:
    """Tell each token's id, without the tokens that were added to the model's own."""
    vocabulary = tokenizer.get("model", {}).get("vocab")
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    if isinstance(vocabulary, list):  # Unigram: token and score, numbered by their place
        return {entry[0]: number for number, entry in enumerate(vocabulary)}
    message = "tokenizer.json has no vocabulary"
    raise DefectNotApplicableError(message)


def ordinary_ids(tokenizer: Json) -> list[int]:
    """List the ids that are no special or added token's, in order."""
    added = {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    found = sorted(number for number in token_ids(tokenizer).values() if number not in added)
    if len(found) < 2:
        message = "the vocabulary has no two ordinary tokens"
        raise DefectNotApplicableError(message)
    return found


def unknown_id(tokenizer: Json, config: Json) -> int:
    """Tell the id of the unknown token.

    Args:
        tokenizer: what `tokenizer.json` holds.
        config: what `tokenizer_config.json` holds; byte-level models name the token there only.

    Raises:
        DefectNotApplicableError: there is none.
    """
    model = tokenizer.get("model", {})
    if model.get("type") == "Unigram" and isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    named = model.get("unk_token") or config.get("unk_token")
    content = named.get("content") if isinstance(named, dict) else named
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    found = token_ids(tokenizer).get(str(content), added.get(content))
    if found is None:
        message = "the tokenizer has no unknown token"
        raise DefectNotApplicableError(message)
    return int(found)


def renumbered(tokenizer: Json, new_ids: Mapping[int, int]) -> Json:
    """Give tokens other ids; those that `new_ids` does not name keep theirs."""
    model: Json = tokenizer["model"]
    ids = {token: new_ids.get(number, number) for token, number in token_ids(tokenizer).items()}
    vocabulary: Any = ids
    if isinstance(model["vocab"], list):
        places = {number: place for place, number in enumerate(ids.values())}
        vocabulary = [model["vocab"][places[number]] for number in range(len(places))]
    return {**tokenizer, "model": {**model, "vocab": vocabulary}}
