"""A process that works tasks off and answers nobody."""

import asyncio
import logging

from db.cache import Cache
from db.files import Files
from jobs.courtesy import Courtesy
from server import background, metrics
from server.settings import Settings
from server.stop import Stop

log = logging.getLogger(__name__)


def work(settings: Settings) -> None:
    """Work until told to stop; that then is success. Raises StartError when it cannot begin."""
    stop = Stop()
    background.prepare(settings)
    metrics.expose(settings)
    asyncio.run(_work(settings, stop))


async def _work(settings: Settings, stop: Stop) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    with stop.by(lambda: loop.call_soon_threadsafe(told.set)):
        assert settings.redis_url is not None
        cache = Cache(settings.redis_url, settings.redis_budget_ms)
        files, slots = Files(settings.store), settings.worker_tasks
        async with cache.running(), background.working(settings, files, cache, slots, Courtesy()):
            log.info("working off up to %s tasks at a time", settings.worker_tasks)
            await told.wait()
