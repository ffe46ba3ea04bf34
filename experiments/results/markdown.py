"""Text in Markdown."""

import re

# What begins or ends something there; an underscore inside a word is itself.
_MARKS = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    """The text as Markdown shows it, on one line, whatever is in it, such as the name of a file."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
