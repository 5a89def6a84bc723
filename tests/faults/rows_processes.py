"""Faults of the service's own processes: killed, frozen, replaced."""

import asyncio
import signal

from faults.load import Load
from faults.processes import Process
from faults.row import row
from faults.stack import Stack


@row("server-killed", "kill -9 of a server at any point, between its commit and its word to Valkey among them")
async def kill_server(stack: Stack, load: Load) -> None:
    server = stack.somebody()
    if stack.random.random() < 0.5:
        # Most of what it does then lies after a commit that nobody has been told of.
        stack.places[server.number].valkey.delay = 0.03
        await asyncio.sleep(stack.random.uniform(0.05, 0.3))
    await server.kill()
    stack.places[server.number].valkey.heal()
    await server.start()


@row("server-frozen", "SIGSTOP of a server, longer than PostgreSQL lets a transaction idle; then SIGCONT")
async def freeze_server(stack: Stack, load: Load) -> None:
    await stack.somebody().frozen(stack.random.choice([1, 4, 12]))


@row("rolling-restart", "SIGTERM of every server, one after the other, each replaced when it has gone")
async def restart_all(stack: Stack, load: Load) -> None:
    for server in stack.servers:
        await restart(stack, server)


async def restart(stack: Stack, server: Process) -> None:
    server.send(signal.SIGTERM)
    code = await server.ended()
    if code != 0:
        stack.broken.append(f"server {server.number} ended with {code} when it was told to stop")
    await server.start()
