"""What identifiers, slugs, keys and texts may look like."""

import re

from resolvers.errors import BadUserInput, UserError, invalid, key_invalid

USER_ID_LENGTH = 128
DESCRIPTION_LENGTH = 2_000
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}", re.ASCII)
KEY = re.compile(r"[ -~]{8,128}", re.ASCII)
# Unicode's control characters, and halves of surrogate pairs, which JSON can smuggle in but no store can keep.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
UNPRINTABLE_IN_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

USER_ID = f"a user id has 1 to {USER_ID_LENGTH} characters, none of them a control character"


def is_user_id(user_id: str) -> bool:
    return 0 < len(user_id) <= USER_ID_LENGTH and not UNPRINTABLE.search(user_id)


def require_user_id(user_id: str, argument: str) -> str:
    if not is_user_id(user_id):
        raise BadUserInput(argument, f"{USER_ID}.")
    return user_id


def require_storable(value: str, argument: str) -> str:
    """Refuse what could not even be looked for."""
    if UNPRINTABLE.search(value):
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


def wrong_description(description: str | None, *path: str) -> list[UserError]:
    if description is None:
        return []
    if len(description) > DESCRIPTION_LENGTH:
        return [invalid(f"A description has at most {DESCRIPTION_LENGTH} characters.", *path)]
    if UNPRINTABLE_IN_TEXT.search(description):
        return [invalid("A description has no control characters except tab and line ends.", *path)]
    return []
