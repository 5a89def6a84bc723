"""What a setting may be, and how it is read."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import ConnectionPool

from db import connections
from db.files import S3

Network = IPv4Network | IPv6Network
HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:]+\]")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/].*)?")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a setting is read; `parse` raises ValueError."""

    parse: Callable[[str], Any]
    # What it may be.
    what: str


def whole(least: int, most: int) -> Kind:
    def parse(value: str) -> int:
        if not least <= int(value) <= most:
            raise ValueError
        return int(value)

    return Kind(parse, f"a whole number from {least} to {most}")


def one_of(*choices: str) -> Kind:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Kind(parse, " or ".join(choices))


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError
    return value


def _database(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
        raise ValueError
    connections.primary(value)
    # The driver's own names: what libpq calls `sslmode` is `ssl` here.
    if not connections.url(value).query.keys() <= signature(asyncpg.connect).parameters.keys():
        raise ValueError
    return value


def _redis(value: str) -> str:
    try:
        # It connects to nothing yet.
        ConnectionPool.from_url(value).make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    except TypeError as error:
        raise ValueError from error
    return value


def _files(value: str) -> str:
    if value.startswith(S3) and not BUCKET.fullmatch(value.removeprefix(S3)):
        raise ValueError
    # Whatever else looks like a URL is no folder that anybody means.
    if "://" in value and not value.startswith(S3):
        raise ValueError
    return _text(value)


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError
    return value.rstrip("/")


def _list(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_all(value: str) -> tuple[Any, ...]:
        return tuple(parse(_text(part).strip()) for part in value.split(","))

    return parse_all


def _host(value: str) -> str:
    if not HOST.fullmatch(value):
        raise ValueError
    return value.lower()


def _page_origin(value: str) -> str:
    if value != _origin(value) or urlsplit(value).path:
        raise ValueError
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.username or not parts.hostname or parts.fragment:
        raise ValueError
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
        return value
    raise ValueError


FILES = Kind(_files, "a folder, or s3://bucket/prefix")
ORIGIN = Kind(_origin, "a URL like https://segments.example.com")
TEXT = Kind(_text, "some text")
ANY = Kind(str, "text")
HTTP_URL = Kind(_http_url, "a URL like https://login.example.com/keys")
HOSTS = Kind(_list(_host), "names like segments.example.com or *.example.com, separated by commas")
ORIGINS = Kind(_list(_page_origin), "origins like https://app.example.com, separated by commas")
NETWORKS = Kind(_list(ip_network), "addresses or networks like 10.0.0.0/8, separated by commas")
FILE = Kind(lambda value: Path(_text(value)), "a file")
FOLDER = Kind(lambda value: Path(_text(value)), "a folder")
DATABASE = Kind(_database, "a URL like postgresql://user:password@host:5432/database, or …?ssl=require for TLS")
REDIS = Kind(_redis, "a URL like redis://host:6379/0, rediss://… or unix://…")
