"""From a query to model input: words with their offsets, and windows no longer than the model reads.

Works on `tokenizers.Encoding`, which the lean path makes with `tokenizers` and the reference with
transformers, so both cut a query the same way if, and only if, their tokenizers do. A query longer
than the model's maximum is read in overlapping windows: nothing is truncated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.tagging import EncodedQuery, Window, Word, entity_runs

if TYPE_CHECKING:
    from tokenizers import Encoding

# transformers writes this when a tokenizer knows no maximum (tokenization_utils_base.VERY_LARGE_INTEGER is 1e30).
_NO_MAXIMUM = 1_000_000
_DEFAULT_MAXIMUM = 512
# These number positions from pad_token_id + 1, so that many rows of the position table are never reached
# (transformers, create_position_ids_from_input_ids).
_OFFSET_POSITIONS = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
_SURROGATES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Put U+FFFD where half a surrogate pair stands, which is in no encoding and which no tokenizer takes; offsets stay."""
    return _SURROGATES.sub("\ufffd", text)


def maximum_tokens(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int:
    """Tell how many tokens, special ones included, the model reads in one row."""
    limits = []
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        padding = config.get("pad_token_id")
        offset = (padding if isinstance(padding, int) else 1) + 1
        limits.append(positions - (offset if config.get("model_type") in _OFFSET_POSITIONS else 0))
    longest = tokenizer_config.get("model_max_length")
    if isinstance(longest, int | float) and 0 < longest < _NO_MAXIMUM:
        limits.append(int(longest))
    return min(limits, default=_DEFAULT_MAXIMUM)


def overlap(maximum: int) -> int:
    """Tell how many tokens two neighbouring windows share: a quarter, so that no word lacks context on both sides."""
    return maximum // 4


def encoded_query(text: str, parts: Sequence[Encoding]) -> EncodedQuery:
    """Turn the tokenizer's answer, one `Encoding` a window, into words and windows."""
    if len(parts) == 1 and (alone := _in_one_window(text, parts[0])) is not None:
        return alone
    words = _words(text, parts)
    index_of = {word_id: index for index, word_id in enumerate(words)}
    owner = _owners(parts) if len(parts) > 1 else None
    windows = []
    for number, part in enumerate(parts):
        heads, indices = [], []
        previous = None
        for position, word_id in enumerate(part.word_ids):
            if word_id is not None and word_id != previous:
                mine = owner is None or owner[word_id] == (number, position)
                if mine and word_id in index_of:
                    heads.append(position)
                    indices.append(index_of[word_id])
            previous = word_id
        windows.append(Window(part.ids, part.type_ids, heads, indices))
    return EncodedQuery(text, list(words.values()), windows)


def plain_runs(encoding: Encoding, labels: Sequence[str], best: Sequence[int]) -> list[tuple[str, int, int]]:
    """Decode one window of a text in which no word needs trimming: kind, start and end of each entity.

    Args:
        encoding: the only window.
        labels: the label names.
        best: the index of each token's label.
    """
    tags: list[str] = []
    words: list[int] = []
    previous = None
    for word_id, index in zip(encoding.word_ids, best, strict=True):
        if word_id is not None and word_id != previous:
            tags.append(labels[index])
            words.append(word_id)
        previous = word_id
    bounds = encoding.word_to_chars
    return [(kind, bounds(words[first])[0], bounds(words[last])[1]) for kind, first, last in entity_runs(tags)]


def _in_one_window(text: str, part: Encoding) -> EncodedQuery | None:
    """Do the same for the usual query, in one pass over its tokens; None if a word's tokens do not stand side by side."""
    heads: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    previous, last = None, -1
    for position, (word_id, (start, end)) in enumerate(zip(part.word_ids, part.offsets, strict=True)):
        if word_id is not None:
            if word_id != previous:
                if word_id <= last:
                    return None
                last = word_id
                heads.append(position)
                starts.append(start)
                ends.append(end)
            else:
                starts[-1] = min(starts[-1], start)
                ends[-1] = max(ends[-1], end)
        previous = word_id
    words = list(map(Word, starts, ends))
    if not _stand_alone(text, words):
        followers = [*starts, len(text)][1:]
        words = [_trimmed(text, *bounds) for bounds in zip(starts, ends, followers, strict=True)]
        heads = [head for head, word in zip(heads, words, strict=True) if word.start < word.end]
        words = [word for word in words if word.start < word.end]
    return EncodedQuery(text, words, [Window(part.ids, part.type_ids, heads, list(range(len(words))))])


def _stand_alone(text: str, words: Sequence[Word]) -> bool:
    """Tell that `_trimmed` would leave all words as they are; ASCII has no combining marks."""
    if not text.isascii():
        return False
    return not any(start >= end or text[start].isspace() or text[end - 1].isspace() for start, end in words)


def _words(text: str, parts: Sequence[Encoding]) -> dict[int, Word]:
    """Find each word's place in the text; words that are nothing but white space are left out."""
    bounds: dict[int, tuple[int, int]] = {}
    for part in parts:
        for word_id, (start, end) in zip(part.word_ids, part.offsets, strict=True):
            if word_id is not None:
                first, last = bounds.get(word_id, (start, end))
                bounds[word_id] = (min(first, start), max(last, end))
    ordered = sorted(bounds)
    words = {}
    for number, word_id in enumerate(ordered):
        start, end = bounds[word_id]
        following = bounds[ordered[number + 1]][0] if number + 1 < len(ordered) else len(text)
        word = _trimmed(text, start, end, following)
        if word.start < word.end:
            words[word_id] = word
    return words


def _trimmed(text: str, start: int, end: int, following: int) -> Word:
    # Tokenizers that mark word starts count the space before a word as part of it.
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    # Tokenizers that strip accents end a word before its last combining mark; the reader sees it as part of the word.
    while start < end < following and unicodedata.category(text[end]) == "Mn":
        end += 1
    return Word(start, end)


def _owners(parts: Sequence[Encoding]) -> dict[int, tuple[int, int]]:
    """Give each word to the window in which its first subword stands farthest from an inner edge."""
    best: dict[int, tuple[int, int, int]] = {}
    for number, part in enumerate(parts):
        inside = [position for position, special in enumerate(part.special_tokens_mask) if not special]
        for position in inside:
            word_id = part.word_ids[position]
            if word_id is None or (position > inside[0] and part.word_ids[position - 1] == word_id):
                continue
            left = position - inside[0] if number > 0 else len(part.ids)
            right = inside[-1] - position if number + 1 < len(parts) else len(part.ids)
            # the first token may be the middle of a word, whose start a window before then holds
            room = min(left, right) if left else -1
            if word_id not in best or room > best[word_id][0]:
                best[word_id] = (room, number, position)
    return {word_id: (number, position) for word_id, (_, number, position) in best.items()}
