"""``fedlearn bench``: every claim of speed, measured here and now with both parties and a yardstick in one run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedlearn.cli import show

app = typer.Typer(help="Measure: both parties as processes, the yardstick in the same run.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Keep `matvec` a subcommand while it is the only one."""


@app.command()
def matvec(
    rows: Annotated[int, typer.Option(help="samples")] = 100_000,
    features: Annotated[int, typer.Option(help="the holder's features")] = 15,
    bins: Annotated[int, typer.Option(help="bins per feature")] = 32,
    vectors: Annotated[int, typer.Option(help="encrypted vectors (32: a tree of depth 5)")] = 32,
    gradient_bits: Annotated[int, typer.Option(help="bits of a value")] = 8,
    repeat: Annotated[int, typer.Option(help="rounds; the median is reported")] = 5,
    paillier_rows: Annotated[int, typer.Option(help="samples of the Paillier yardstick; 0 leaves it out")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """The encrypted matrix-vector product: hint, encrypt, respond, decode, against Paillier on a sample.

    Example: fedlearn bench matvec --rows 100000 --features 15 --bins 32 --vectors 32 --json
    """
    from fedlearn.bench import matvec as bench

    size = bench.Size(rows, features, bins, vectors, gradient_bits, repeat)
    result = bench.measure(size, paillier_rows)
    if as_json:
        print(json.dumps(result))
    else:
        show.out.print(show.facts_table("encrypted matrix-vector product", result))
