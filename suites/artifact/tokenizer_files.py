"""Compare an export's tokenizer with the reference's, as the two kinds of users load it.

`tokenizers` reads tokenizer.json alone; transformers lets tokenizer_config.json override lower-casing,
accents and special tokens. What the tokenizers do to texts is compared by the suites parity and queries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from harness.artifact import TOKENIZER
from harness.errors import CheckpointError, one_line
from harness.reference import Reference, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_Sections = dict[str, Any]
# A tokenizer remembers how it was last called, and save_pretrained writes that down too.
_CAUSES = {
    "truncation": ": it cuts by itself, as if saved after a call with truncation=True; copy the checkpoint's",
    "padding": ": it pads by itself, as if saved after a call with padding=True; copy the checkpoint's",
}


def tokenizer_differences(folder: Path, reference: Reference) -> list[str]:
    """List what differs, by section of tokenizer.json and by setting of tokenizer_config.json."""
    expected = _sections(reference.tokenizer.backend_tokenizer.to_str())
    return [*_in_file(folder / TOKENIZER, expected), *_in_transformers(folder, reference.tokenizer, expected)]


def _in_file(path: Path, expected: _Sections) -> list[str]:
    """Compare the file as it stands, its own truncation and padding too, whatever version of `tokenizers` wrote it."""
    try:
        found = _sections(Tokenizer.from_file(str(path)).to_str())
    except Exception as err:  # tokenizers raises bare Exception
        return [f"{path.name} cannot be loaded: {one_line(err, 120)}"]
    return [f"{path.name} {section}{_CAUSES.get(section, '')}" for section in _differing(found, expected)]


def _in_transformers(folder: Path, reference: PreTrainedTokenizerFast, expected: _Sections) -> list[str]:
    try:
        tokenizer = load_tokenizer(folder)
    except CheckpointError as err:
        return [f"as transformers loads it: {one_line(err, 200)}"]
    found = _sections(tokenizer.backend_tokenizer.to_str())
    names = [f"as transformers loads it: {section}" for section in _differing(found, expected)]
    for name in ("special_tokens_map", "padding_side", "truncation_side", "model_input_names"):
        mine, right = getattr(tokenizer, name), getattr(reference, name)
        if mine != right:
            names.append(
                f"as transformers loads it: {name} is {one_line(mine, 80)}, the reference's {one_line(right, 80)}"
            )
    return names


def _sections(text: str) -> _Sections:
    content: _Sections = json.loads(text)
    return content


def _differing(found: _Sections, expected: _Sections) -> list[str]:
    names = sorted({*found, *expected} - {"version"})
    return [name for name in names if found.get(name) != expected.get(name)]
