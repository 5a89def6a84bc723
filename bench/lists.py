"""All measurements of lists, rollouts and the past, one after the other; `make bench-lists` runs them."""

import typer

from bench import as_of, bulk, figures, imports, races, replace, rollouts
from bench.figures import Json


def main(json: Json = None) -> None:
    subjects = (bulk, imports, replace, races, rollouts, as_of)
    figures.conclude([subject.measure() for subject in subjects], json)


if __name__ == "__main__":
    typer.run(main)
