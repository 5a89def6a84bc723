"""gql: documents that are checked against the service's own schema, over HTTP and over a WebSocket."""

import asyncio
from typing import Any

from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from gql.transport.exceptions import TransportQueryError
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport
from graphql import GraphQLError
from story import HEADERS, SECONDS, TOKEN, URL, new_key, new_name

CREATE = """mutation ($slug: String!, $key: String!) {
  createSegment(input: {slug: $slug}, idempotencyKey: $key) {
    replayed segment { slug description } userErrors { code path } } }"""
CHANGE = """mutation ($input: ChangeUserSegmentsInput!, $key: String!) {
  changeUserSegments(input: $input, idempotencyKey: $key) {
    replayed added user { id segments { slug } } userErrors { code path } } }"""
FILL = """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { code } } }"""
USER = """query ($id: ID!) {
  user(id: $id) { id segments { slug } history { nodes { slug action actor } } } }"""
MEMBERS = """query ($slug: String!, $after: String) {
  segment(slug: $slug) { members(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } } } }"""
WRONG = "{ user(id: 7) { nickname } }"
WATCH = "subscription ($id: ID!) { userChanged(id: $id) { resync events { slug action } user { segments { slug } } } }"


async def ask(session: AsyncClientSession, document: str, **variables: Any) -> dict[str, Any]:
    return await session.execute(GraphQLRequest(document, variable_values=variables))


async def main() -> None:
    http = Client(
        transport=HTTPXAsyncTransport(url=URL, headers=HEADERS, timeout=SECONDS), fetch_schema_from_transport=True
    )
    name = new_name("gql")
    async with http as session:
        await retries(session, name)
        await refusals(session, name)
        await pages(session, name)
    print("documents checked against the schema")
    transport = WebsocketsTransport(
        url=URL.replace("http:", "ws:"),
        init_payload={"authorization": f"Bearer {TOKEN}"},
        subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],
    )
    async with asyncio.timeout(SECONDS), Client(transport=transport) as session:
        await watches(session, name)


async def retries(session: AsyncClientSession, name: str) -> None:
    created = (await ask(session, CREATE, slug=name, key=new_key()))["createSegment"]
    assert created == {"replayed": False, "segment": {"slug": name, "description": None}, "userErrors": []}
    key = new_key()
    user = {"id": name, "segments": [{"slug": name}]}
    for replayed in (False, True):
        changed = (await ask(session, CHANGE, input={"userId": name, "add": [name]}, key=key))["changeUserSegments"]
        assert changed == {"replayed": replayed, "added": [name], "user": user, "userErrors": []}
    event = {"slug": name, "action": "ADDED", "actor": "clients"}
    assert (await ask(session, USER, id=name))["user"] == {**user, "history": {"nodes": [event]}}
    print("a retry happens once")


async def refusals(session: AsyncClientSession, name: str) -> None:
    input = {"userId": name, "add": [f"{name}-nowhere"]}
    refused = (await ask(session, CHANGE, input=input, key=new_key()))["changeUserSegments"]
    assert refused["userErrors"] == [{"code": "SEGMENT_NOT_FOUND", "path": ["input", "add", "0"]}]
    try:
        await ask(session, WRONG)
        found = "nothing"
    except GraphQLError as error:
        found = error.message
    assert found == "Cannot query field 'nickname' on type 'User'."
    assert await codes(HEADERS, WRONG) == ["GRAPHQL_VALIDATION_FAILED"]
    assert await codes({}, USER, id=name) == ["UNAUTHENTICATED"]
    print("refusals by their codes")


async def codes(headers: dict[str, str], document: str, **variables: Any) -> list[str]:
    """How the service refuses what was not checked before."""
    async with Client(transport=HTTPXAsyncTransport(url=URL, headers=headers, timeout=SECONDS)) as session:
        try:
            await ask(session, document, **variables)
        except TransportQueryError as refusal:
            return [error["extensions"]["code"] for error in refusal.errors or ()]
    raise AssertionError("The service has not refused it.")


async def pages(session: AsyncClientSession, name: str) -> None:
    slug, ids = f"{name}-pages", [f"{name}-{number}" for number in range(5)]
    await ask(session, CREATE, slug=slug, key=new_key())
    filled = (await ask(session, FILL, input={"slug": slug, "userIds": ids}, key=new_key()))["addUsersToSegment"]
    assert filled == {"added": 5, "userErrors": []}
    found: list[list[str]] = []
    after, more = None, True
    while more:
        members = (await ask(session, MEMBERS, slug=slug, after=after))["segment"]["members"]
        found.append([node["id"] for node in members["nodes"]])
        after, more = members["pageInfo"]["endCursor"], members["pageInfo"]["hasNextPage"]
    assert found == [ids[:2], ids[2:4], ids[4:]]
    print("three pages")


async def watches(session: AsyncClientSession, name: str) -> None:
    segments = [{"slug": name}]
    news = session.subscribe(GraphQLRequest(WATCH, variable_values={"id": name}))
    first = (await anext(news))["userChanged"]
    assert first == {"resync": True, "events": [], "user": {"segments": segments}}
    changed = await ask(session, CHANGE, input={"userId": name, "remove": [name]}, key=new_key())
    assert changed["changeUserSegments"]["user"] == {"id": name, "segments": []}
    events = [{"slug": name, "action": "REMOVED"}]
    assert (await anext(news))["userChanged"] == {"resync": False, "events": events, "user": {"segments": []}}
    await news.aclose()
    print("a subscription and a mutation over one WebSocket")


asyncio.run(main())
