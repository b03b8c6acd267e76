"""Untrusted text as something to look at: nothing in it is hidden, reorders its neighbours or breaks a line.

Escapes nothing: what a `<` means is the business of the format that the text goes into.
"""

from __future__ import annotations

import unicodedata

# Control, format and surrogate code points, and the separators of lines and paragraphs.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Scripts of India and Iran are spelt with these two.
_JOINERS = frozenset("\u200c\u200d")


def visible(text: str, limit: int | None = None) -> str:
    """Write every code point that cannot be seen as `⟨U+202E⟩`, and cut what is longer than `limit` code points.

    Law: the result can be encoded as UTF-8, holds no character that XML 1.0 forbids, and equals a text that is
    printable ASCII and short enough.
    """
    cut = text if limit is None or len(text) <= limit else text[:limit]
    shown = cut if cut.isascii() and cut.isprintable() else "".join(map(_shown, cut))
    return shown if cut is text else f"{shown}… ({len(text):,} characters)"


def _shown(character: str) -> str:
    if character in _JOINERS or not (unicodedata.category(character) in _HIDDEN or _is_no_character(character)):
        return character
    return f"⟨U+{ord(character):04X}⟩"


def _is_no_character(character: str) -> bool:
    """Whether Unicode has set the code point aside for no character (The Unicode Standard, section 23.7)."""
    number = ord(character)
    return number & 0xFFFE == 0xFFFE or 0xFDD0 <= number <= 0xFDEF
