"""What a user did, said once: the value, what is allowed, the nearest match, the fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a command, a config or the data; shown without a traceback, exit code 2."""


class BusyError(UserError):
    """Another process holds a folder: the same work is under way."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be, or None if nothing is close."""
    choices = list(choices)
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """One line for an unknown name: the name, the nearest match and the list.

    >>> unknown("detector", "difusion", ["diffusion", "knn"])
    "unknown detector 'difusion' (did you mean 'diffusion'?); allowed: diffusion, knn"
    """
    choices = sorted(choices)
    guess = nearest(word, choices)
    hint = f" (did you mean '{guess}'?)" if guess else ""
    return f"unknown {kind} '{word}'{hint}; allowed: {', '.join(choices) or 'nothing'}"
