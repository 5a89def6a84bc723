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
from resolvers.context import Budget, Info
from resolvers.errors import BadUserInput, TimedOut
from resolvers.users import User, UserId
from resolvers.values import require_user_id
from resolvers.watching_tasks import shown

# Within which PostgreSQL has to be there for a subscription to begin.
BEGIN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class UserChange:
    user: User
    events: list[MembershipEvent]
    resync: bool


async def user_changed(info: Info, id: UserId) -> AsyncIterator[UserChange]:
    user = User(require_user_id(id, "id"))
    info.context.subscriptions.require_room(info.context.payer)
    return _user_changes(info, user)


async def _user_changes(info: Info, user: User) -> AsyncIterator[UserChange]:
    context = info.context
    users = context.subscriptions.users
    with context.subscriptions.counted(context.payer), users.watching(user.id, context.drop) as inbox:
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await users.begin(user.id, inbox)
        except TimeoutError as error:
            raise TimedOut from error
        yield UserChange(user, [], resync=True)
        while True:
            news = await inbox.next()
            # Of each message as of an answer.
            context.budget = Budget(context.limits.nodes)
            context.budget.spend(len(news.events))
            yield UserChange(user, news.events, news.resync)


async def task_updated(
    info: Info,
    id: Annotated[ID, strawberry.argument(description="A task of yours, else BAD_USER_INPUT.")],
) -> AsyncIterator[Task]:
    task_id = tasks.parsed(id)
    if task_id is None or await tasks.of_caller(info, task_id) is None:
        raise BadUserInput("id", "you have no such task.")
    info.context.subscriptions.require_room(info.context.payer)
    return _task_updates(info, task_id)


async def _task_updates(info: Info, task_id: UUID) -> AsyncIterator[Task]:
    context = info.context
    with context.subscriptions.counted(context.payer), context.subscriptions.tasks.watching(task_id) as inbox:
        task = await tasks.of_caller(info, task_id)
        while task is not None:
            context.budget = Budget(context.limits.nodes)
            yield task
            if task.finished_at is not None:
                return
            told = task
            while task is not None and (task.seen_at <= told.seen_at or shown(task) == shown(told)):
                task = await inbox.next()
