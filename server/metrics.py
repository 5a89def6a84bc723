"""Where Prometheus looks."""

from prometheus_client import start_http_server

from server.settings import Settings, StartError


def expose(settings: Settings) -> None:
    """Answer `/metrics` from a thread of its own, if that is wanted, until the process ends."""
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, settings.host)
    except OSError as error:
        raise StartError(
            f"Metrics cannot be shown on {settings.host} port {settings.metrics_port} ({error.strerror}): choose "
            "another with SEGMENTQL_METRICS_PORT."
        ) from error
