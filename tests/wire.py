"""A client that costs next to nothing, for tests that send thousands of requests from the same two cores."""

from conftest import Client

from bench import wire


class Wire(wire.Wire):
    """One connection; errors fail the test."""

    def __init__(self, client: Client) -> None:
        url = client.http.base_url
        assert url.port is not None
        super().__init__(url.host, url.port)
