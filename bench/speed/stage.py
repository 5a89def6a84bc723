"""The servers that have been started over one data set, the cache they share, and what each measurement begins with."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import uniform

from redis import Redis

from bench.client import Client
from bench.figures import said
from bench.speed import answers, competitors, works
from bench.speed.competitors import Competitor
from bench.speed.data import TTL, Data, stored_by_peers
from bench.speed.servers import MissingError, Server
from bench.speed.works import Cache, Work


@dataclass(slots=True)
class Stage:
    data: Data
    ending: ExitStack
    # Who takes no part in which work, and why; and who cannot be started.
    missing: dict[str, str] = field(default_factory=dict)
    unable: set[str] = field(default_factory=set)
    _servers: dict[str, Server] = field(default_factory=dict)
    # What the peers would have stored.
    _lists: list[tuple[str, str]] = field(default_factory=list)

    def server(self, competitor: Competitor) -> Server:
        """The competitor's, started at its first turn."""
        if competitor.name not in self._servers:
            self._servers[competitor.name] = self.ending.enter_context(competitor.start(self.data))
        return self._servers[competitor.name]

    @property
    def running(self) -> Iterable[Server]:
        return self._servers.values()

    def able(self, work: Work, who: Iterable[Competitor]) -> list[Competitor]:
        """Those of them who can be started, and give the answers that SegmentQL gives."""
        reference = self.server(competitors.SEGMENTQL)
        return [competitor for competitor in who if self._is_able(work, competitor, reference)]

    def _is_able(self, work: Work, competitor: Competitor, reference: Server) -> bool:
        if competitor.name in self.unable:
            return False
        try:
            answers.check(self.data, work, competitor, self.server(competitor), reference)
        except (MissingError, answers.DifferentError) as error:
            self.leave_out(competitor, work, error)
            if isinstance(error, MissingError):
                self.unable.add(competitor.name)
            return False
        return True

    def leave_out(self, competitor: Competitor, work: Work, why: Exception) -> None:
        """Say that it takes no part in that work."""
        self.missing[f"{competitor.name}: {work.name}"] = str(why)
        said(f"{competitor.title} takes no part in {work.name}: {why!s:.500}")

    def make_ready(self, competitor: Competitor, work: Work) -> None:
        """Bring the cache into the state that the work begins with; what is in it lasts longer than a measurement."""
        with Redis.from_url(self.data.database.redis_url) as redis:
            redis.flushall()
            if work.cache is Cache.WARM and not competitor.ours:
                self._lists = self._lists or stored_by_peers(self.data, self.data.user_ids(0, works.ASKED))
                with redis.pipeline(transaction=False) as pipe:
                    for key, text in self._lists:
                        pipe.set(key, text, ex=round(uniform(*TTL)))
                    pipe.execute()
        if work.cache is Cache.WARM and competitor.ours:
            self._warm_ours()

    def _warm_ours(self) -> None:
        # Whichever of ours it is: they share what is stored. This one asks nobody who they are.
        with Client("127.0.0.1", self.server(competitors.SEGMENTQL).port) as client:
            for each in works.HUNDRED.variables(self.data, 0):
                client.ask(works.USERS, **each)
