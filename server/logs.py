"""How this process logs: lines on standard error, for people or for programs."""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
from structlog.dev import RESET_ALL, Column, ConsoleRenderer, KeyValueColumnFormatter, plain_traceback
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict

from resolvers import facts

# Under which a record carries what is shown beside its message: logging's `extra`.
FIELDS = "fields"
COLOURS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
# PostgreSQL's errors end by telling which row it was: with its user's id, or its key.
DETAIL = re.compile(r"\n\s*(DETAIL|HINT):[^\n]*")
PLAIN = re.compile(r"[!#-<>-~]+")  # neither spaces nor quotes nor =


def configure(level: str, style: str = "console") -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(style, colours=sys.stderr.isatty()))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These repeat what we say ourselves, or say it for every request and migration.
    for name in ("uvicorn.error", "alembic", "asyncio", "opentelemetry"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    # Nobody is shown which line of which thread it was, and to find that out takes as long as all the rest: Python's
    # manual of logging says so, under "Optimization".
    logging._srcfile = None  # noqa: SLF001  # see above
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def formatter(style: str, *, colours: bool = False) -> ProcessorFormatter:
    """What makes a line of a record, which may come from a library: `json` for programs, `console` for people."""
    if style == "json":
        return ProcessorFormatter(processors=[_event, format_exc_info, _discreet, JSONRenderer(_dumps)])
    return ProcessorFormatter(processors=[_event, format_exc_info, _discreet, _console(colours=colours)])


def _event(_logger: object, _method: str, given: EventDict) -> EventDict:
    """What is shown, in this order."""
    record: logging.LogRecord = given["_record"]
    instant = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    event: EventDict = {
        "timestamp": instant.removesuffix("+00:00") + "Z",
        "level": record.levelname,
        "logger": record.name,
        "event": given["event"],
    }
    if (request_id := facts.current().request_id) is not None:
        event["request_id"] = request_id
    event.update(getattr(record, FIELDS, {}))
    if (exc_info := given.get("exc_info")) is not None and exc_info[0] is not None:
        event["exc_info"] = exc_info
    return event


def _discreet(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name in ("event", "exception"):
        if "\n" in event.get(name, ""):
            event[name] = DETAIL.sub("", event[name])
    return event


def _dumps(event: EventDict, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def _console(*, colours: bool) -> ConsoleRenderer:
    def shown(key: str, value_repr: Any = str, postfix: str = "") -> Column:
        return Column(key, KeyValueColumnFormatter(None, "", "", value_repr, postfix=postfix))

    def level(said: object) -> str:
        return f"{COLOURS.get(str(said), '')}{said}{RESET_ALL}" if colours else str(said)

    others = Column("", KeyValueColumnFormatter("", "", "", _value))
    return ConsoleRenderer(
        columns=[shown("timestamp"), shown("level", level), shown("logger", postfix=":"), shown("event"), others],
        exception_formatter=plain_traceback,
        sort_keys=False,
    )


def _value(value: object) -> str:
    """What a caller chose begins no line of its own."""
    said = str(value)
    return said if PLAIN.fullmatch(said) else orjson.dumps(said).decode()
