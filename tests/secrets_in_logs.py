"""Looks at everything that our code logs while tests run, down to DEBUG, for what must never be in a log.

What opens doors is known by its shape, and so are the idempotency keys of tests; a test that has other secrets, or
users that nobody may be told of, says so by `remember`. The test during which one is found fails.
"""

import logging
import re
from pathlib import Path

import pytest
from structlog.stdlib import ProcessorFormatter

from server import app, cli
from server.logs import formatter

SHAPES = re.compile(
    r"segmentql_[0-9A-Za-z]{6,}_[0-9A-Za-z]{20,}"  # tokens
    r"|eyJ[\w-]{10,}\.eyJ[\w-]+"  # JWTs
    r"|\bsignature=|X-Amz-Signature"  # links
    r"|\bBearer [^\s\"]{8,}"
    r"|\btest-key-\d|key-of-a-test"
    r"|\bs3cret\b"  # passwords in URLs
)
# Importing these makes every logger.
EVERYTHING = (app, cli)
PACKAGES = ("server", "schema", "resolvers", "db", "jobs")
# Not one of logging's own, so that a test that sets a level is told from us.
LEVEL = 1

remembered: set[str] = set()
# What was found, and where.
found: list[str] = []
_lines = formatter("json")


def remember(*secrets: str) -> None:
    """These, too, must not be in any line from here on, in this process."""
    remembered.update(secrets)


def search(text: str) -> None:
    match = SHAPES.search(text)
    if match is not None or any(secret in text for secret in remembered):
        found.append(text)


def search_file(log: Path) -> None:
    """What a process has written."""
    search(log.read_text())


class Watch(logging.Filter):
    """Sees a record before its level is asked for, and lets pass what would be logged without us."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        search(_lines.format(record))
        level = self._logger.level
        return record.levelno >= (logging.root.level if level == LEVEL else level)


def pytest_configure() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in PACKAGES:
            logger = logging.getLogger(name)
            logger.setLevel(LEVEL)
            logger.addFilter(Watch(logger))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    # A command that ran in this process has configured logging for good.
    logging.root.setLevel(logging.WARNING)
    for handler in [each for each in logging.root.handlers if isinstance(each.formatter, ProcessorFormatter)]:
        logging.root.removeHandler(handler)
    leaks, found[:] = found[:], []
    assert leaks == [], "this was logged, and has a secret in it"
