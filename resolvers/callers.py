"""Who asks."""

from dataclasses import dataclass
from datetime import datetime

from db.tables import Scope

# From the least to the most.
SCOPES = tuple(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    # Whose keys and tasks these are, and whom history names.
    client: str
    scope: Scope
    # Which token of ours was shown, if one was.
    token_id: str | None = None
    # When what was shown ceases to be good; None: never.
    expires_at: datetime | None = None

    @property
    def rank(self) -> int:
        return rank(self.scope)

    def may(self, scope: Scope) -> bool:
        return rank(self.scope) >= rank(scope)


def rank(scope: Scope) -> int:
    """How much a scope allows, compared with others."""
    return SCOPES.index(scope)


# Everybody, where nobody is asked who they are.
ANONYMOUS = Caller("anonymous", Scope.ADMIN)
