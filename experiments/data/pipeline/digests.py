"""What tells one set of images from another: two counts and a SHA-256, as plain values of JSON."""

from collections.abc import Iterable, Sequence
import hashlib

Entry = dict[str, int | str]


def entry(parts: Iterable[bytes | memoryview], *, examples: int, classes: int) -> Entry:
    """What is told of a split.

    Args:
      parts: all that the images, their order and their labels follow from.
      examples: their number.
      classes: their number.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts are alike
        digest.update(part)
    return {"examples": examples, "classes": classes, "sha256": digest.hexdigest()}


def words(names: Sequence[object]) -> Iterable[bytes]:
    """Their number and each of them, as parts; a name may be any string."""
    yield str(len(names)).encode()
    for name in names:
        yield str(name).encode("utf-8", "surrogatepass")
