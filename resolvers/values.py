"""What identifiers, slugs, keys and texts may look like."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

from strawberry import ID

from db import user_ids
from db.user_ids import is_printable
from resolvers.errors import BadUserInput, UserError, invalid, key_invalid

DESCRIPTION_LENGTH = 2_000
MOST_PERCENT = 100
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}", re.ASCII)
KEY = re.compile(r"[ -~]{8,128}", re.ASCII)
UNPRINTABLE_IN_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

USER_ID = f"a user id has 1 to {user_ids.LENGTH} characters, none of them a control character"


class BigInt(int):
    """What a type says where a number may be larger than GraphQL's Int."""


class IdList(str):  # GraphQL takes no other value for an id
    """Many ids that come as the value of one (server/long_lists.py)."""

    __slots__ = ("ids",)
    ids: list[str]

    @classmethod
    def of(cls, ids: list[str]) -> "IdList":
        packed = cls("many ids")
        packed.ids = ids
        return packed


def unpacked(ids: list[ID]) -> list[ID]:
    """The ids, however they came."""
    if len(ids) == 1 and isinstance(ids[0], IdList):
        return cast("list[ID]", ids[0].ids)
    return ids


def is_user_id(user_id: str) -> bool:
    return 0 < len(user_id) <= user_ids.LENGTH and is_printable(user_id)


def require_user_id(user_id: str, argument: str) -> str:
    if not is_user_id(user_id):
        raise BadUserInput(argument, f"{USER_ID}.")
    return user_id


def require_user_ids(ids: Sequence[str], argument: str) -> None:
    """The same for many, which are looked at together."""
    lengths = list(map(len, ids))
    if ids and not (min(lengths) > 0 and max(lengths) <= user_ids.LENGTH and is_printable("".join(ids))):
        for user_id in ids:
            require_user_id(user_id, argument)


def require_storable(value: str, argument: str) -> str:
    """Refuse what could not even be looked for."""
    if not is_printable(value):
        raise BadUserInput(argument, "it has a control character.")
    return value


def wrong_key(key: str) -> list[UserError]:
    return [] if KEY.fullmatch(key) else [key_invalid()]


def wrong_user_id(user_id: str, *path: str) -> list[UserError]:
    return [] if is_user_id(user_id) else [invalid(f"{USER_ID.capitalize()}.", *path)]


def wrong_slug(slug: str, *path: str) -> list[UserError]:
    if SLUG.fullmatch(slug):
        return []
    what = "A slug has 1 to 255 letters, digits, hyphens and underscores, and begins with a letter or digit."
    return [invalid(what, *path)]


def basis_points(percent: float) -> int | None:
    """The percentage in its hundredths; None when it has more decimals, or is none."""
    # As it was written: no float is exactly 0.29.
    hundredths = Decimal(str(percent)) * 100
    return int(hundredths) if hundredths.is_finite() and hundredths == int(hundredths) else None


def wrong_percent(percent: float | None, *path: str) -> list[UserError]:
    if percent is None or (0 <= percent <= MOST_PERCENT and basis_points(percent) is not None):
        return []
    return [invalid("A percentage is from 0 to 100, with at most two decimals.", *path)]


def wrong_description(description: str | None, *path: str) -> list[UserError]:
    if description is None:
        return []
    if len(description) > DESCRIPTION_LENGTH:
        return [invalid(f"A description has at most {DESCRIPTION_LENGTH} characters.", *path)]
    if UNPRINTABLE_IN_TEXT.search(description):
        return [invalid("A description has no control characters except tab and line ends.", *path)]
    return []


def distinct(slugs: Sequence[str]) -> list[tuple[int, str]]:
    """Each slug once, with the position where it is first."""
    first: dict[str, int] = {}
    for position, slug in enumerate(slugs):
        first.setdefault(slug, position)
    return [(position, slug) for slug, position in first.items()]


def wrong_user_ids(ids: Sequence[str], *path: str) -> list[UserError]:
    """Of a list of any length."""
    # All at once: that takes a tenth of the time.
    lengths = set(map(len, ids))
    if 0 not in lengths and max(lengths) <= user_ids.LENGTH and is_printable("".join(ids)):
        return []
    return [error for position, user_id in enumerate(ids) for error in wrong_user_id(user_id, *path, str(position))]
