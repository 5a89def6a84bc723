"""Additions that take their time, so that a fault can come in between."""

from faults.row import Strike
from faults.stack import Stack

FUNCTION = """
    CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.user_id LIKE 'slow-%' THEN PERFORM pg_sleep({seconds}); END IF;
        RETURN NEW;
    END $$
"""
TRIGGER = "CREATE TRIGGER slowly BEFORE INSERT ON memberships FOR EACH ROW EXECUTE FUNCTION slowly()"


def adding_slowly(seconds: float) -> Strike:
    """Each membership of a user whose id begins with `slow-` takes so long."""

    async def begin(stack: Stack, _load: object) -> None:
        await stack.postgres.ask(FUNCTION.format(seconds=seconds))
        await stack.postgres.ask(TRIGGER)

    return begin
