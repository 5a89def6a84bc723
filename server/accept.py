"""Which media type an answer has, by what the request accepts."""

from contextlib import suppress

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"
STREAM = "text/event-stream"
# A client that takes anything knows no more than JSON, which is therefore the first.
OFFERS = (JSON, GRAPHQL_RESPONSE)

# A media range's quality, and where it stands in the header.
Ranges = dict[str, tuple[float, int]]


def negotiated(accept: str) -> str | None:
    """The most wanted of our media types, or None when none is accepted, or a stream is wanted.

    An empty header accepts everything.
    """
    ranges = _ranges(accept or "*/*")
    if STREAM in ranges and _wants_stream(ranges):
        return None
    best = max(OFFERS, key=lambda media: _preference(ranges, media))
    quality, _, _ = _preference(ranges, best)
    return best if quality > 0 else None


def wants_stream(accept: str) -> bool:
    """Whether server-sent events are wanted more than anything else that there is.

    They have to be named before all others: many clients name them last, for whatever they ask.
    """
    return STREAM in accept.lower() and _wants_stream(_ranges(accept))


def _wants_stream(ranges: Ranges) -> bool:
    quality, position = ranges.get(STREAM, (0.0, 0))
    others = (ranges[media] for media in (*OFFERS, "application/*", "*/*") if media in ranges)
    return quality > 0 and all((quality, -position) > (other, -place) for other, place in others)


def _preference(ranges: Ranges, media: str) -> tuple[float, int, int]:
    """By quality, then by how closely it is named, then by how early."""
    for distance, range_ in enumerate((media, "application/*", "*/*")):
        if range_ in ranges:
            quality, position = ranges[range_]
            return quality, -distance, -position
    return 0, 0, 0


def _ranges(accept: str) -> Ranges:
    ranges: Ranges = {}
    for position, part in enumerate(accept.split(",")):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        with suppress(ValueError):  # a range that cannot be understood is not accepted
            if 0 <= float(quality) <= 1:
                ranges.setdefault(media, (float(quality), position))
    return ranges
