"""What the id of a user may look like, wherever it comes from."""

import re

# Characters.
LENGTH = 128
# Unicode's control characters, and halves of surrogate pairs, which JSON can smuggle in but no store can keep.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_printable(text: str) -> bool:
    """Whether there is nothing in it that an id may not have: of one, or of many that are put together."""
    # The pattern takes fifty times as long.
    return (text.isascii() and text.isprintable()) or not UNPRINTABLE.search(text)
