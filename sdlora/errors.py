"""What a user can cause: one kind of error, and the helper that names the nearest valid word."""

from collections.abc import Iterable
from difflib import get_close_matches


class SdloraError(Exception):
    """Bad input. The message says what was found, where, and what to do next; the CLI prints it and exits 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: "; did you mean X?" or "; valid: a, b, c"."""
    names = [str(v) for v in valid]
    match = get_close_matches(str(name), names, n=1)
    return f"; did you mean {match[0]}?" if match else f"; valid: {', '.join(sorted(names))}"
