"""`python -m server` is `segmentql`, without installing it."""

from server.cli import main

main()
