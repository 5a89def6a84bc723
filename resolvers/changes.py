"""What subscriptions tell: how a user's memberships change, and how a task moves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import strawberry
from strawberry import ID

from db.history import MembershipEvent
from db.tasks import Task
from resolvers import tasks
from resolvers.context import Budget, Context, Info
from resolvers.errors import BadUserInput, TimedOut
from resolvers.users import User, UserId
from resolvers.values import require_user_id
from resolvers.watching import RESYNC, together
from resolvers.watching_tasks import shown

# Within which PostgreSQL has to be there for a subscription to begin.
BEGIN_SECONDS = 10
# After a message of which something could not be read, and again after another; then twice as long, up to the most.
AGAIN_SECONDS, MOST_AGAIN_SECONDS = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class UserChange:
    user: User
    events: list[MembershipEvent]
    resync: bool


async def user_changed(info: Info, id: UserId) -> AsyncIterator[UserChange]:
    user = User(require_user_id(id, "id"))
    info.context.services.subscriptions.require_room(info.context.payer)
    return _user_changes(info, user)


async def _user_changes(info: Info, user: User) -> AsyncIterator[UserChange]:
    context = info.context
    users = context.services.subscriptions.users
    with context.services.subscriptions.counted(context.payer), users.watching(user.id, context.drop) as inbox:
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await users.begin(user.id, inbox)
        except TimeoutError as error:
            raise TimedOut from error
        news, failures = RESYNC, 0
        while True:
            # Of each message as of an answer.
            context.budget = Budget(context.services.limits.nodes)
            if len(news.events) > context.services.limits.nodes:
                news = RESYNC
            context.budget.spend(len(news.events))
            yield UserChange(user, news.events, news.resync)
            failures = await _after_failures(context, failures)
            if failures:
                # Its events may be lost, and those that have come meanwhile show in what is read now.
                inbox.clear()
                news = RESYNC
            else:
                news = together(await inbox.next())


async def task_updated(
    info: Info,
    id: Annotated[ID, strawberry.argument(description="A task of yours, else BAD_USER_INPUT.")],
) -> AsyncIterator[Task]:
    task_id = tasks.parsed(id)
    if task_id is None or await tasks.of_caller(info, task_id) is None:
        raise BadUserInput("id", "you have no such task.")
    info.context.services.subscriptions.require_room(info.context.payer)
    return _task_updates(info, task_id)


async def _task_updates(info: Info, task_id: UUID) -> AsyncIterator[Task]:
    context = info.context
    with (
        context.services.subscriptions.counted(context.payer),
        context.services.subscriptions.tasks.watching(task_id) as inbox,
    ):
        told, failures = None, 0
        while (task := (await inbox.next())[-1]) is not None:
            if not failures and told is not None and shown(task) == shown(told):
                continue
            context.budget = Budget(context.services.limits.nodes)
            yield task
            told, failures = task, await _after_failures(context, failures)
            if task.finished_at is not None and not failures:
                return


async def _after_failures(context: Context, failures: int) -> int:
    """How many messages in a row have failed, the last one among them; after the pause that the next one is due."""
    if not context.failed:
        return 0
    await asyncio.sleep(min(MOST_AGAIN_SECONDS, AGAIN_SECONDS * 2**failures))
    return min(failures + 1, 30)
