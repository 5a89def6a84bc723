"""What the environment may decide, and what is said when it may not."""

import dataclasses
import logging
from pathlib import Path

import pytest

from server.settings import PREFIX, Settings, StartError, from_environ

URLS = {"SEGMENTQL_DATABASE_URL": "postgresql://db/segmentql", "SEGMENTQL_REDIS_URL": "redis://cache:6379/0"}
DATABASE = "a URL like postgresql://user:password@host:5432/database, or …?ssl=require for TLS"
HOSTS = "names like segments.example.com or *.example.com, separated by commas"
JWKS = "a URL like https://login.example.com/keys"
NETWORKS = "addresses or networks like 10.0.0.0/8, separated by commas"
ORIGIN = "a URL like https://segments.example.com"
ORIGINS = "origins like https://app.example.com, separated by commas"
REDIS = "a URL like redis://host:6379/0, rediss://… or unix://…"


def test_nothing_has_to_be_set() -> None:
    assert from_environ({"PATH": "/bin", "HOST": "0.0.0.0"}) == Settings()
    assert Settings().embedded
    assert not from_environ(URLS).embedded


def test_everything_can_be_set() -> None:
    others = {
        "host": "::1",
        "authentication": "required",
        "unauthenticated": "anywhere",
        "jwt_issuer": "https://login.example.com/",
        "jwt_audience": "segmentql",
        "jwt_jwks_url": "https://login.example.com/keys",
        "jwt_client_claim": "client_id",
        "jwt_scope_claim": "roles",
        "jwt_scope_prefix": "segments/",
        "graphiql": "on",
        "introspection": "off",
        "data_dir": "/my data",
        "files": "s3://bucket/some/prefix",
        "public_url": "https://segments.example.com",
        "history_retention_months": "24",
        "metrics_port": "9090",
        "log_level": "ERROR",
        "log_format": "json",
        "metrics_host": "127.0.0.2",
        "tracing": "otlp",
        "fast_path": "off",
        "persisted_queries": "off",
        "trusted_documents": "/my documents.json",
    }
    lists = {
        "allowed_hosts": "segments.example.com,*.example.com,[::1]",
        "cors_origins": "https://app.example.com,http://localhost:3000",
        "trusted_proxies": "10.0.0.0/8,127.0.0.1/32,fd00::/8",
    }
    numbers = {
        field.name: str(field.default + 1) for field in dataclasses.fields(Settings) if isinstance(field.default, int)
    }
    environ = URLS | {PREFIX + name.upper(): value for name, value in (others | lists | numbers).items()}
    found = dataclasses.asdict(from_environ(environ))
    assert found["data_dir"] == Path("/my data")
    assert found["trusted_documents"] == Path("/my documents.json")
    for name in lists:
        found[name] = ",".join(map(str, found[name]))
    assert {PREFIX + name.upper(): str(value) for name, value in found.items()} == environ


def test_a_list_may_have_spaces_and_names_are_the_same_in_capitals() -> None:
    names = {
        "SEGMENTQL_ALLOWED_HOSTS": "Segments.Example.com, db_1 ,[FD00::1]",
        "SEGMENTQL_TRUSTED_PROXIES": "10.0.0.1, fd00::1",
    }
    found = from_environ(URLS | names)
    assert found.allowed_hosts == ("segments.example.com", "db_1", "[fd00::1]")
    assert [str(network) for network in found.trusted_proxies] == ["10.0.0.1/32", "fd00::1/128"]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("HOST", " ", "some text"),
        ("PORT", "eighty", "a whole number from 0 to 65535"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "-1", "a whole number from 0 to 65535"),
        ("PORT", "", "a whole number from 0 to 65535"),
        ("WORKERS", "0", "a whole number from 1 to 64"),
        ("UNAUTHENTICATED", "yes", "loopback or anywhere"),
        ("DATA_DIR", "", "a folder"),
        ("DATABASE_WAIT", "1.5", "a whole number from 0 to 3600"),
        ("POOL_SIZE", "3", "a whole number from 4 to 200"),
        ("READ_POOL_SIZE", "2", "a whole number from 3 to 200"),
        ("REDIS_BUDGET_MS", "0", "a whole number from 1 to 5000"),
        ("EXECUTION_TIMEOUT", "0", "a whole number from 1 to 300"),
        ("MAX_BODY_BYTES", "999", "a whole number from 1000 to 1073741824"),
        ("MAX_TOKENS", "9", "a whole number from 10 to 1000000"),
        ("MAX_DEPTH", "1", "a whole number from 2 to 1000"),
        ("MAX_ALIASES", "-1", "a whole number from 0 to 100000"),
        ("MAX_ROOT_FIELDS", "0", "a whole number from 1 to 10000"),
        ("MAX_DIRECTIVES", "many", "a whole number from 0 to 10000"),
        ("MAX_LIST_ITEMS", "0", "a whole number from 1 to 10000"),
        ("MAX_PAGE_SIZE", "0", "a whole number from 1 to 10000"),
        ("MAX_CHANGES", "10001", "a whole number from 1 to 10000"),
        ("SERVE_TASKS", "-1", "a whole number from 0 to 64"),
        ("WORKER_TASKS", "0", "a whole number from 1 to 64"),
        ("FILES", "", "a folder, or s3://bucket/prefix"),
        ("FILES", "s3://", "a folder, or s3://bucket/prefix"),
        ("FILES", "s3://Bucket", "a folder, or s3://bucket/prefix"),
        ("FILES", "s3://bucket//prefix", "a folder, or s3://bucket/prefix"),
        ("FILES", "gs://bucket", "a folder, or s3://bucket/prefix"),
        ("LINK_MINUTES", "0", "a whole number from 1 to 10080"),
        ("KEY_RETENTION_HOURS", "23", "a whole number from 24 to 8784"),
        ("FILE_RETENTION_DAYS", "0", "a whole number from 1 to 3660"),
        ("TASK_RETENTION_DAYS", "0", "a whole number from 1 to 3660"),
        ("HISTORY_RETENTION_MONTHS", "0", "a whole number from 1 to 1200"),
        ("METRICS_PORT", "0", "a whole number from 1 to 65535"),
        ("LOG_LEVEL", "verbose", "DEBUG or INFO or WARNING or ERROR"),
        ("LOG_FORMAT", "text", "console or json"),
        ("AUTHENTICATION", "on", "off or required"),
        ("JWT_ISSUER", "", "some text"),
        ("JWT_AUDIENCE", " ", "some text"),
        ("JWT_CLIENT_CLAIM", "", "some text"),
        ("JWT_SCOPE_CLAIM", "", "some text"),
        ("ALLOWED_HOSTS", "", HOSTS),
        ("ALLOWED_HOSTS", "*", HOSTS),
        ("ALLOWED_HOSTS", "a.example.com,", HOSTS),
        ("ALLOWED_HOSTS", "https://a.example.com", HOSTS),
        ("ALLOWED_HOSTS", "a.example.com:443", HOSTS),
        ("ALLOWED_HOSTS", "a.*.example.com", HOSTS),
        ("CORS_ORIGINS", "", ORIGINS),
        ("CORS_ORIGINS", "*", ORIGINS),
        ("CORS_ORIGINS", "null", ORIGINS),
        ("CORS_ORIGINS", "https://app.example.com/", ORIGINS),
        ("CORS_ORIGINS", "https://app.example.com/path", ORIGINS),
        ("CORS_ORIGINS", "app.example.com", ORIGINS),
        ("TRUSTED_PROXIES", "", NETWORKS),
        ("TRUSTED_PROXIES", "*", NETWORKS),
        ("TRUSTED_PROXIES", "proxy", NETWORKS),
        ("TRUSTED_PROXIES", "10.0.0.1/8", NETWORKS),
        ("GRAPHIQL", "yes", "auto or on or off"),
        ("INTROSPECTION", "no", "auto or on or off"),
        ("RATE_LIMIT", "-1", "a whole number from 0 to 1000000"),
        ("RATE_BURST", "199", "a whole number from 200 to 10000000"),
        ("LOGIN_FAILURES", "0", "a whole number from 1 to 10000"),
        ("MAX_CONCURRENT", "0", "a whole number from 1 to 100000"),
        ("MAX_CONCURRENT_PER_CLIENT", "0", "a whole number from 1 to 100000"),
        ("MAX_HEADER_BYTES", "1023", "a whole number from 1024 to 1048576"),
        ("DRAIN_SECONDS", "301", "a whole number from 0 to 300"),
        ("SLOW_MS", "0", "a whole number from 1 to 300000"),
        ("TRACING", "on", "off or otlp"),
    ],
)
def test_a_bad_value_is_named_with_what_it_may_be(name: str, value: str, what: str) -> None:
    with pytest.raises(StartError) as refused:
        from_environ(URLS | {PREFIX + name: value})
    assert str(refused.value) == f"{PREFIX}{name} is {value!r}: it must be {what}."


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("DATABASE_URL", "", DATABASE),
        ("DATABASE_URL", "db:5432", DATABASE),
        ("DATABASE_URL", "mysql://someone:s3cret@db/segmentql", DATABASE),
        ("DATABASE_URL", "postgresql+psycopg://someone:s3cret@db/segmentql", DATABASE),
        ("DATABASE_URL", "postgresql://someone:s3cret@db:port/segmentql", DATABASE),
        ("DATABASE_URL", "postgresql://someone:s3cret@db/segmentql?sslmode=require", DATABASE),
        ("REDIS_URL", "", REDIS),
        ("REDIS_URL", "http://someone:s3cret@cache", REDIS),
        ("REDIS_URL", "redis://someone:s3cret@cache:port", REDIS),
        ("REDIS_URL", "redis://someone:s3cret@cache?ssl=require", REDIS),
        ("PUBLIC_URL", "segments.example.com", ORIGIN),
        ("PUBLIC_URL", "ftp://segments.example.com", ORIGIN),
        ("PUBLIC_URL", "https://someone:s3cret@segments.example.com", ORIGIN),
        ("PUBLIC_URL", "https://segments.example.com/?a=b", ORIGIN),
        ("JWT_JWKS_URL", "", JWKS),
        ("JWT_JWKS_URL", "https:///keys", JWKS),
        ("JWT_JWKS_URL", "ftp://login.example.com/keys", JWKS),
        ("JWT_JWKS_URL", "http://login.example.com/keys", JWKS),
        ("JWT_JWKS_URL", "http://localhost.example.com/keys", JWKS),
        ("JWT_JWKS_URL", "https://someone:s3cret@login.example.com/keys", JWKS),
        ("JWT_JWKS_URL", "https://login.example.com/keys#first", JWKS),
    ],
)
def test_a_bad_url_is_refused_without_being_shown(name: str, value: str, what: str) -> None:
    with pytest.raises(StartError) as refused:
        from_environ(URLS | {PREFIX + name: value})
    assert str(refused.value) == f"{PREFIX}{name} is not usable: it must be {what}."


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://db/segmentql",
        "postgres://someone:s3cret@db:5432/segmentql?ssl=require",
        "postgresql+asyncpg://segmentql@/segmentql?host=%2Frun%2Fmy%20db&port=5432",
    ],
)
def test_postgresqls_urls_are_understood(value: str) -> None:
    assert from_environ(URLS | {"SEGMENTQL_DATABASE_URL": value}).database_url == value


@pytest.mark.parametrize("value", ["redis://cache", "rediss://:s3cret@cache:6380/2", "unix:///run/cache.sock?db=1"])
def test_redis_urls_are_understood(value: str) -> None:
    assert from_environ(URLS | {"SEGMENTQL_REDIS_URL": value}).redis_url == value


@pytest.mark.parametrize(
    "value",
    ["https://login.example.com/keys?v=2", "http://localhost:8080/keys", "http://[::1]/keys", "http://127.0.0.1"],
)
def test_keys_come_by_https_or_from_this_machine(value: str) -> None:
    assert from_environ(URLS | {"SEGMENTQL_JWT_JWKS_URL": value}).jwt_jwks_url == value


@pytest.mark.parametrize("name", URLS)
def test_one_of_the_two_urls_is_not_enough(name: str) -> None:
    with pytest.raises(StartError) as refused:
        from_environ({name: URLS[name]})
    assert str(refused.value) == (
        "Set both SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL, or neither to use own servers."
    )


def test_a_setting_that_is_none_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert from_environ({"SEGMENTQL_UNAUTHENTICATD": "anywhere"}) == Settings()
    assert caplog.record_tuples == [
        ("server.settings", logging.WARNING, "SEGMENTQL_UNAUTHENTICATD is not a setting of this version")
    ]
