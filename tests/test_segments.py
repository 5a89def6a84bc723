"""Segments: creating, changing, deleting, finding."""

from conftest import Ask

CREATE = """mutation ($slug: String!, $description: String, $key: String!) {
  createSegment(input: {slug: $slug, description: $description}, idempotencyKey: $key) {
    segment { id slug description deletedAt } replayed userErrors { code message path } } }"""


async def test_a_created_segment_is_found(ask: Ask) -> None:
    created = (await ask(CREATE, slug="A", key="key-00001"))["createSegment"]
    assert created["segment"]["slug"] == "A"
    assert (await ask('{ segment(slug: "A") { id slug } }'))["segment"] == {"id": created["segment"]["id"], "slug": "A"}
