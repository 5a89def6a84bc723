"""Which media type an answer has, by what the request accepts."""

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"
# A client that takes anything knows no more than JSON.
OFFERS = {GRAPHQL_RESPONSE: GRAPHQL_RESPONSE, JSON: JSON, "application/*": JSON, "*/*": JSON}


def negotiated(accept: str | None) -> str | None:
    """The most wanted of our media types, or None when none is accepted. No header accepts everything."""
    for media in _preferred(accept or "*/*"):
        if media in OFFERS:
            return OFFERS[media]
    return None


def _preferred(accept: str) -> list[str]:
    """The media ranges in the client's order of preference."""
    ranges: list[tuple[float, str]] = []
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges.append((float(quality), media))
        except ValueError:
            continue
    return [media for quality, media in sorted(ranges, key=lambda range_: -range_[0]) if quality > 0]
