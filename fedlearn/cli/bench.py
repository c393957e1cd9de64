"""``fedlearn bench``: every claim of speed, measured here and now with both parties and a yardstick in one run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedlearn.cli import show

app = typer.Typer(help="Measure: both parties as processes, the yardstick in the same run.", no_args_is_help=True)


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


@app.command()
def boost(
    rows: Annotated[int, typer.Option(help="rows of the generated table")] = 100_000,
    active_features: Annotated[int, typer.Option(help="features of the side with labels")] = 15,
    passive_features: Annotated[int, typer.Option(help="features of the other side")] = 15,
    bins: Annotated[int, typer.Option(help="bins per feature")] = 32,
    depth: Annotated[int, typer.Option(help="depth of a tree")] = 5,
    trees: Annotated[int, typer.Option(help="number of trees")] = 10,
    gradient_bits: Annotated[int, typer.Option(help="bits of a quantised gradient")] = 8,
    backend: Annotated[str, typer.Option(help="lwe or paillier")] = "lwe",
    routing: Annotated[str, typer.Option(help="oblivious, bits or shared")] = "oblivious",
    active_file: Annotated[str | None, typer.Option(help="CSV with key, label and features")] = None,
    passive_file: Annotated[str | None, typer.Option(help="CSV with key and features")] = None,
    key: Annotated[str, typer.Option(help="key column of both files")] = "id",
    label: Annotated[str, typer.Option(help="label column of the active file")] = "label",
    positive: Annotated[str, typer.Option(help="text of a positive label")] = "1",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Boosted trees, both parties as processes, against XGBoost on the pooled rows in the same run.

    Example: fedlearn bench boost --rows 100000 --active-features 15 --passive-features 15 --trees 10 --json
    """
    from fedlearn.bench import boost as bench

    setting = bench.Setting(
        rows, active_features, passive_features, bins, depth, trees, gradient_bits, backend, routing,
        active_file, passive_file, key, label, positive,
    )  # fmt: skip
    result = bench.measure(setting)
    if as_json:
        print(json.dumps(result))
    else:
        show.out.print(show.facts_table("boosted trees", result))


@app.command()
def align(
    method: Annotated[str, typer.Option(help="ot, ecdh or auto")] = "ot",
    mode: Annotated[str, typer.Option(help="mutual, one-sided or cardinality")] = "mutual",
    rows: Annotated[int, typer.Option(help="rows of the active side")] = 1_000_000,
    rows_b: Annotated[int | None, typer.Option(help="rows of the passive side; by default as many")] = None,
    openmined_rows: Annotated[int, typer.Option(help="rows for openmined-psi; 0 leaves it out")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Private set intersection, both parties as processes, against openmined-psi on a sample.

    Example: fedlearn bench align --method ot --rows 1000000 --json
    """
    from fedlearn.bench import align as bench

    result = bench.measure(method, mode, rows, rows if rows_b is None else rows_b, openmined_rows)
    if as_json:
        print(json.dumps(result))
    else:
        show.out.print(show.facts_table("private set intersection", result))
