"""Queries of an exact number of tokens, made of the data's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from harness.errors import DataError

SEED = 20261123
_TRIES_PER_QUERY = 50
_LONGEST_TRY = 400


def queries_of_length(texts: Sequence[str], count_tokens: Callable[[str], int], tokens: int, wanted: int) -> list[str]:
    """Find queries of exactly so many tokens, special ones included, and make the rest of the data's words.

    Own queries of that length come first; others are words of neighbouring queries strung together, a word that would
    make the query too long left out. The same in every run.

    Args:
        texts: the data's queries.
        count_tokens: tells how many tokens a text has.
        tokens: how many are asked for.
        wanted: how many queries.

    Raises:
        DataError: not one query of that length can be made.
    """
    random = np.random.default_rng((SEED, tokens))
    order = [int(place) for place in random.permutation(len(texts))]
    found = [texts[place] for place in order if count_tokens(texts[place]) == tokens][:wanted]
    tries = 0
    while len(found) < wanted and tries < wanted * _TRIES_PER_QUERY:
        made = _strung(texts, order, tries, count_tokens, tokens)
        tries += 1
        if made is not None and made not in found:
            found.append(made)
    if not found:
        message = f"no query of exactly {tokens} tokens can be made of the data. Name other data with --data FILE."
        raise DataError(message)
    return found


def _strung(
    texts: Sequence[str], order: Sequence[int], first: int, count_tokens: Callable[[str], int], tokens: int
) -> str | None:
    words: list[str] = []
    offered = [word for place in range(len(order)) for word in texts[order[(first + place) % len(order)]].split()]
    for word in offered[:_LONGEST_TRY]:
        length = count_tokens(" ".join([*words, word]))
        if length <= tokens:
            words.append(word)
        if length == tokens:
            return " ".join(words)
    return None
