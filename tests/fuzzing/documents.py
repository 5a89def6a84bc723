"""Documents: one for each operation of the schema, others made by hand, and both cut up and put together wrongly."""

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from generated_values import Values
from graphql import GraphQLField, GraphQLInputType, GraphQLObjectType, GraphQLSchema, get_named_type

from fuzzing import texts

TOKEN = re.compile(
    r'"""(?:[^"]|"(?!""))*"""|"(?:\\.|[^"\\\n])*"|\.\.\.|[_A-Za-z]\w*|-?[0-9][0-9.eE+-]*|\s+|.', re.DOTALL
)
ODD_TOKENS = (
    *("{", "}", "(", ")", "[", "]", "!", "$", "...", "@", ":", "=", "|", "&", "\\", "#", '"', '"""', ","),
    *("query", "mutation", "subscription", "fragment", "on", "null", "true", "type", "schema", "extend", "__typename"),
    *("$v", "@skip(if: true)", "@include(if: $v)", "@deprecated", "@defer", "@stream", "@oneOf", "__schema"),
    *("...F", "... on User", "... @skip(if: false)", "0", "-", "1.", "1e5", "1e999", "9" * 500, "\x00", "\ufeff"),
    *("\u2028", "é", "🦊", "\ud800", '"\\ud800"', '"\\u{110000}"', '"\\u{D83E}"', '"\\udc00\\ud800"', "\x0b", "\r"),
    *('"""\n  a\n\tb\\""" \n"""', '"' + "x" * 300 + '"', "a" * 300, "extensions", "\t", '"\\x"', "'a'"),
)
BY_HAND = (
    "{ __typename }",
    '{ user(id: "u1") { id segments { slug } memberships { segment { slug } expiresAt source } isIn(slug: "A") } }',
    "query Q($id: ID!) { user(id: $id) { history(first: 5) { nodes { slug at action } pageInfo { endCursor } } } }",
    "{ segments(first: 3) { nodes { slug members(first: 2) { nodes { id } edges { cursor } } } } }",
    'query A { a: user(id: 1) { ...F } } query B { b: users(ids: [1, "2"]) { ...F } } fragment F on User { id }',
    """mutation { changeUserSegments(input: {userId: "u1", add: ["A"]}, idempotencyKey: "12345678") {
         added userErrors { code path message } } }""",
    '''mutation { createSegment(input: {slug: "A", description: """block "quoted" \\""" text"""},
         idempotencyKey: "abcdefgh") { segment { id } userErrors { code } } }''',
    'subscription S { userChanged(id: "u1") { resync events { slug } user { id } } }',
    "{ __schema { types { name kind fields(includeDeprecated: true) { name args { name type { name } } } } } }",
    '{ __type(name: "User") { name fields { name type { name kind ofType { name } } } } }',
    "{ tasks(first: 2, kind: REPORT, status: FAILED) { nodes { id error file { url } } } }",
    "query ($skip: Boolean! = true) { user(id: 1) { id @skip(if: $skip) ... @include(if: false) { id } } }",
    "query ($from: DateTime) { user(id: 1) { history(from: $from) { nodes { at } } } }",
)


@dataclass(frozen=True)
class Operation:
    """An operation of the schema whose arguments are all variables."""

    kind: str
    field: str
    text: str
    arguments: dict[str, GraphQLInputType]


def operations(schema: GraphQLSchema) -> list[Operation]:
    types = {"query": schema.query_type, "mutation": schema.mutation_type, "subscription": schema.subscription_type}
    return [
        _operation(kind, name, field)
        for kind, type_ in types.items()
        if type_ is not None
        for name, field in type_.fields.items()
    ]


def _operation(kind: str, name: str, field: GraphQLField) -> Operation:
    inside = _selections(field, 2)
    # What lists take is in the arguments of what is below, too.
    below: dict[str, GraphQLInputType] = {}
    if name == "user":
        inside, below = "{ id history(first: $first, after: $after) { nodes { slug } } }", _below(field, "history")
    elif name == "segment":
        inside, below = "{ id members(first: $first, after: $after) { nodes { id } } }", _below(field, "members")
    arguments = {argument: definition.type for argument, definition in field.args.items()}
    declared = ", ".join(f"${argument}: {type_}" for argument, type_ in (arguments | below).items())
    passed = ", ".join(f"{argument}: ${argument}" for argument in arguments)
    head = f"({declared})" if declared else ""
    called = f"({passed})" if passed else ""
    return Operation(kind, name, f"{kind} O{head} {{ {name}{called} {inside} }}", arguments | below)


def _below(field: GraphQLField, name: str) -> dict[str, GraphQLInputType]:
    type_ = get_named_type(field.type)
    assert isinstance(type_, GraphQLObjectType)
    return {argument: type_.fields[name].args[argument].type for argument in ("first", "after")}


def _selections(field: GraphQLField, levels: int) -> str:
    type_ = get_named_type(field.type)
    fields = getattr(type_, "fields", None)
    if not isinstance(type_, GraphQLObjectType) or fields is None:
        return ""
    written = [
        f"{name} {_selections(below, levels - 1)}"
        for name, below in fields.items()
        if name not in ("history", "members", "memberCount")
        and all(argument.default_value is not None or name != "isIn" for argument in below.args.values())
        and name != "isIn"
        and (levels > 1 or not isinstance(get_named_type(below.type), GraphQLObjectType))
    ]
    return f"{{ {' '.join(written)} }}"


def good_variables(operation: Operation, values: Values, random: random.Random) -> dict[str, Any]:
    """As they might be meant."""
    given = {name: values.good(operation.field, name, type_) for name, type_ in operation.arguments.items()}
    if "idempotencyKey" in given:
        given["idempotencyKey"] = f"key-{random.randrange(10**9)}" if random.random() < 0.9 else "key-again"
    if isinstance(given.get("input"), dict) and "slug" not in given["input"] and operation.field == "createSegment":
        given["input"]["slug"] = random.choice(values.world.slugs)
    return given


def document(known: list[str], random: random.Random) -> str:
    """One that may be valid, and mostly is not."""
    chance = random.random()
    if chance < 0.15:
        return random.choice(MADE)(random)
    if chance < 0.2:
        return random.choice(known)
    return _mutated(random.choice(known), known, random)


def _mutated(text: str, known: list[str], random: random.Random) -> str:
    tokens = TOKEN.findall(text)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(tokens))
        what = random.random()
        if what < 0.22:
            del tokens[place : place + random.choice((1, 1, 2, 5))]
        elif what < 0.4:
            tokens[place:place] = tokens[place : place + random.choice((1, 3, 8))]
        elif what < 0.7:
            tokens[place] = random.choice(ODD_TOKENS)
        elif what < 0.8:
            other = random.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
        elif what < 0.9:
            others = TOKEN.findall(random.choice(known))
            begin = random.randrange(len(others))
            tokens[place:place] = others[begin : begin + random.randrange(1, 20)]
        else:
            tokens[place] = f'"{texts.text(random)}"'
        tokens = tokens or ["{"]
    return "".join(tokens)


def _many(random: random.Random) -> int:
    return random.choice((2, 10, 40, 100, 300))


def _deep(random: random.Random) -> str:
    n = _many(random)
    return random.choice(
        (
            "{" + "user(id:1){" * n + "id" + "}" * n + "}",
            "{" + "...{" * n + "__typename" + "}" * n + "}",
            "{" * n,
            "{users(ids:" + "[" * n + "1" + "]" * n + "){id}}",
            "mutation{createSegment(input:" + "{a:" * n + "1" + "}" * n + ",idempotencyKey:1){replayed}}",
            "{__schema" + "{types{fields{type" * min(n, 8) + "{name}" + "}}}" * min(n, 8) + "}",
            "query($a:" + "[" * n + "ID" + "]" * n + "){__typename}",
        )
    )


def _wide(random: random.Random) -> str:
    n = _many(random)
    return random.choice(
        (
            "{" + " ".join(f"a{i}:user(id:{i}){{segments{{slug}}}}" for i in range(n)) + "}",
            "{__typename " + "@skip(if:false)" * n + "}",
            "{__typename" + " id" * n + "}",
            "query(" + " ".join(f"$v{i}:ID={i}" for i in range(n)) + "){__typename}",
            " ".join(f"query Q{i}{{__typename}}" for i in range(n)),
            "{user(" + " ".join(f"id:{i}" for i in range(n)) + "){id}}",
            "#" + "\n#" * n + "\n{__typename}",
            "," * n + "{__typename}",
            f"{{users(ids:[{','.join(map(str, range(n)))}]){{id segments{{slug}}}}}}",
        )
    )


def _fragments(random: random.Random) -> str:
    n = min(_many(random), 60)
    cycle = " ".join(f"fragment F{i} on User{{...F{(i + 1) % n} id}}" for i in range(n))
    return random.choice(
        (
            "{user(id:1){...F0}} " + cycle,
            "{user(id:1){...F}} fragment F on User{...F}",
            "{user(id:1){...F}} fragment F on User{id} fragment F on User{id}",
            "{user(id:1){...F}} fragment F on Segment{id}",
            "{...on Nothing{id}}",
            "fragment F on User{id}",
            "{user(id:1){...F0}} " + " ".join(f"fragment F{i} on User{{...F{i + 1} ...F{i + 1}}}" for i in range(n)),
            "query Q{...Q} fragment Q on Query{...Q}",
            "{user(id:$v){id}} fragment on on on{id}",
        )
    )


def _of_types(random: random.Random) -> str:
    return random.choice(
        (
            "type A{a:Int}",
            "schema{query:Query}",
            "extend type User{x:Int} {__typename}",
            "directive @a on FIELD {__typename @a}",
            "subscription{userChanged(id:1){resync} taskUpdated(id:1){id}}",
            "subscription{a:userChanged(id:1){resync} ...{taskUpdated(id:1){id}}}",
            "subscription{__typename}",
            "mutation{__typename}",
            "mutation{"
            + " ".join(f'a{i}:deleteSegment(slug:"none",idempotencyKey:"{i}2345678"){{replayed}}' for i in range(25))
            + "}",
            "{__type(name:null){name}}",
            "{user{id}} {user{id}}",
            "query Q($a:Nothing){__typename} query Q{__typename}",
            "query($a:User){__typename}",
            "query($a:ID!=null){user(id:$a){id}}",
            'query($a:[ID!]!=["1",2,null]){users(ids:$a){id}}',
            "{user(id:1){id{id}}}",
            "{user(id:1)}",
            "{user(id:1.0){id}}",
            "{user(id:true){id}}",
            "{user(id:{a:1}){id}}",
            "{segments(first:9999999999999){nodes{id}}}",
            '{segments(first:-1,after:""){nodes{id}}}',
            '{user(id:1){memberships(at:"9999-12-31T23:59:59.999999-23:59"){addedAt}}}',
            '{user(id:1){history(from:"0001-01-01T00:00:00+23:59",to:"0001-01-01T00:00:00Z"){nodes{at}}}}',
        )
    )


MADE: tuple[Callable[[random.Random], str], ...] = (_deep, _wide, _fragments, _of_types)


def known_documents(schema: GraphQLSchema) -> list[str]:
    return list(itertools.chain(BY_HAND, (operation.text for operation in operations(schema))))
