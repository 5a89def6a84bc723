"""All measurements of the jobs, one after the other; `make bench-jobs` runs them."""

import typer

from bench import cleanup, figures, purge, reports
from bench.figures import Json


def main(json: Json = None) -> None:
    figures.conclude([reports.measure(), purge.measure(), cleanup.measure()], json)


if __name__ == "__main__":
    typer.run(main)
