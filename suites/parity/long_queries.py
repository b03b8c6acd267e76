"""Queries longer than the model reads at once, made of the labelled ones, and what is lost of them.

Uses only what every tokenizer here does, `encode`, so it works for any reference.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from harness.tagging import EncodedQuery, TokenClassifier, Window

# Words that are tried for the last places of a full window.
_CANDIDATES = 100


def long_queries(reference: TokenClassifier, texts: Sequence[str], longest: int) -> list[str]:
    """Make a query of one token more than the model's maximum, and one of half as much again.

    Where no word of the data is a single token, the first is as few tokens longer as its words allow.
    """
    words = _words(texts, longest + longest // 2)
    return [_one_token_more(reference, words), " ".join(words)]


def _words(texts: Sequence[str], count: int) -> list[str]:
    """Take that many words of the data, from its start again where it has not so many."""
    words: list[str] = []
    while len(words) < count:
        before = len(words)
        for text in texts:
            words += text.split()
            if len(words) >= count:
                break
        if len(words) == before:  # data without a word
            return ["a"] * count
    return words[:count]


def _one_token_more(reference: TokenClassifier, words: Sequence[str]) -> str:
    """Fill one window to the last token with words, short ones at the end, and add one word."""
    fitting = bisect_right(range(1, len(words)), 0, key=lambda count: not _fits(reference, " ".join(words[:count])))
    text = " ".join(words[:fitting])
    filler = _short_word(reference, words)
    while _fits(reference, longer := f"{text} {filler}"):
        text = longer
    return f"{text} {filler}"


def _fits(reference: TokenClassifier, text: str) -> bool:
    return len(reference.encode([text])[0].windows) == 1


def _short_word(reference: TokenClassifier, words: Sequence[str]) -> str:
    """Find the word that adds the fewest tokens to a query, but one at least."""
    alone, *others = reference.encode([words[0], *(f"{words[0]} {word}" for word in words[:_CANDIDATES])])
    added = {word: _tokens(query) - _tokens(alone) for word, query in zip(words, others, strict=False)}
    return min((word for word, tokens in added.items() if tokens > 0), key=added.__getitem__, default="a")


def _tokens(query: EncodedQuery) -> int:
    return sum(len(window.input_ids) for window in query.windows)


def is_read_alike(left: EncodedQuery, right: EncodedQuery) -> bool:
    """Whether the variant reads every word of a query, the same ones as the reference, in as many windows."""
    whole = _tagged_words(right.windows) == len(right.words)
    return whole and list(left.words) == list(right.words) and len(left.windows) == len(right.windows)


def _tagged_words(windows: Sequence[Window]) -> int:
    return len({word for window in windows for word in window.words})
