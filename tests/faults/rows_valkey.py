"""Faults of Valkey and of the way to it."""

import asyncio

from faults.load import Load
from faults.row import row
from faults.stack import Stack


@row("valkey-killed", "kill -9 of Valkey; another one, with nothing in it, a moment later")
async def kill(stack: Stack, load: Load) -> None:
    stack.valkey.kill()
    await asyncio.sleep(stack.random.uniform(0, 2))
    await stack.valkey.start()


@row("valkey-flushed", "FLUSHALL, again and again")
async def flush(stack: Stack, load: Load) -> None:
    for _ in range(10):
        await stack.valkey.client.flushall()
        await asyncio.sleep(stack.random.uniform(0, 0.1))


@row("valkey-frozen", "SIGSTOP of Valkey; then SIGCONT, and it does what it was told meanwhile")
async def freeze(stack: Stack, load: Load) -> None:
    stack.valkey.freeze()
    try:
        await asyncio.sleep(stack.random.choice([0.03, 0.1, 1, 4]))
    finally:
        stack.valkey.thaw()


@row("valkey-slow", "200 ms more to and from Valkey, for one server or for all")
async def slow(stack: Stack, load: Load) -> None:
    places = stack.places if stack.random.random() < 0.5 else [stack.random.choice(stack.places)]
    for place in places:
        place.valkey.delay = 0.1
    await asyncio.sleep(stack.random.uniform(1, 3))
    for place in places:
        place.valkey.heal()


@row("valkey-full", "no memory for another key, and nothing may be evicted")
async def fill(stack: Stack, load: Load) -> None:
    await stack.valkey.client.config_set("maxmemory-policy", "noeviction")
    await stack.valkey.client.config_set("maxmemory", "1mb")
    await asyncio.sleep(stack.random.uniform(0.5, 2))
    await stack.valkey.client.config_set("maxmemory", "0")


@row(
    "valkey-cut-off",
    "one server finds no Valkey while the others do: what it changes they may not see for a minute",
    staleness=60.0,
)
async def cut_off(stack: Stack, load: Load) -> None:
    relay = stack.places[stack.somebody().number].valkey
    relay.leave()
    await asyncio.sleep(70 if stack.random.random() < 0.1 else stack.random.uniform(0.5, 4))
    relay.heal()
