"""Text of others, made fit to be shown: a model names its operators, and a terminal obeys what is in a name."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]


def printable(text: str) -> str:
    """One line: line ends and tabs become spaces; controls, and all else that is not seen, become escapes."""
    return text if text.isprintable() else "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return " " if character in "\t\n\v\f\r" else character.encode("unicode_escape").decode("ascii")
