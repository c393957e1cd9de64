"""``fedlearn bench``: every claim of speed, measured here and now with both parties and a yardstick in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlearn.cli import show

app = typer.Typer(help="Measure: both parties as processes, the yardstick in the same run.", no_args_is_help=True)


Json = Annotated[bool, typer.Option("--json", help="print JSON")]
ActiveFeatures = Annotated[int, typer.Option(help="features of the side with labels")]
PassiveFeatures = Annotated[int, typer.Option(help="features of the other side")]
ActiveFile = Annotated[str | None, typer.Option(help="CSV with key, label and features")]
PassiveFile = Annotated[str | None, typer.Option(help="CSV with key and features")]
KeyColumn = Annotated[str, typer.Option(help="key column of both files")]
LabelColumn = Annotated[str, typer.Option(help="label column of the active file")]
Positive = Annotated[str, typer.Option(help="text of a positive label")]


@app.command()
def matvec(
    rows: Annotated[int, typer.Option(help="samples")] = 100_000,
    features: Annotated[int, typer.Option(help="the holder's features")] = 15,
    bins: Annotated[int, typer.Option(help="bins per feature")] = 32,
    vectors: Annotated[int, typer.Option(help="encrypted vectors (32: a tree of depth 5)")] = 32,
    gradient_bits: Annotated[int, typer.Option(help="bits of a value")] = 8,
    repeat: Annotated[int, typer.Option(help="rounds; the median is reported")] = 5,
    zeros: Annotated[float, typer.Option(min=0, max=1, help="share of samples put into one bin of each feature")] = 0.0,
    paillier_rows: Annotated[int, typer.Option(help="samples of the Paillier yardstick; 0 leaves it out")] = 200,
    as_json: Json = False,
) -> None:
    """The encrypted matrix-vector product: hint, encrypt, respond, decode, against Paillier on a sample.

    Example: fedlearn bench matvec --rows 100000 --features 15 --bins 32 --vectors 32 --json
    """
    from fedlearn.bench import matvec as bench

    size = bench.Size(rows, features, bins, vectors, gradient_bits, repeat, zeros)
    result = bench.measure(size, paillier_rows)
    _show("encrypted matrix-vector product", result, as_json)


@app.command()
def boost(
    rows: Annotated[int, typer.Option(help="rows of the generated table")] = 100_000,
    active_features: ActiveFeatures = 15,
    passive_features: PassiveFeatures = 15,
    bins: Annotated[int, typer.Option(help="bins per feature")] = 32,
    depth: Annotated[int, typer.Option(help="depth of a tree")] = 5,
    trees: Annotated[int, typer.Option(help="number of trees")] = 10,
    gradient_bits: Annotated[int, typer.Option(help="bits of a quantised gradient")] = 8,
    backend: Annotated[str, typer.Option(help="lwe or paillier")] = "lwe",
    routing: Annotated[str, typer.Option(help="oblivious, bits or shared")] = "oblivious",
    link: Annotated[
        str, typer.Option(help="loopback, or simulated: lan, 100mbit (20 ms), 10mbit (50 ms)")
    ] = "loopback",
    active_file: ActiveFile = None,
    passive_file: PassiveFile = None,
    key: KeyColumn = "id",
    label: LabelColumn = "label",
    positive: Positive = "1",
    as_json: Json = False,
) -> None:
    """Boosted trees, both parties as processes, against XGBoost on the pooled rows in the same run.

    Example: fedlearn bench boost --rows 100000 --active-features 15 --passive-features 15 --trees 10 --json
    """
    from fedlearn.bench import boost as bench

    setting = bench.Setting(
        rows=rows, active_features=active_features, passive_features=passive_features, bins=bins, depth=depth,
        trees=trees, gradient_bits=gradient_bits, backend=backend, routing=routing, link=link,
        active_file=active_file, passive_file=passive_file, key=key, label=label, positive=positive,
    )  # fmt: skip
    result = bench.measure(setting)
    _show("boosted trees", result, as_json)


@app.command()
def growth(
    out: Annotated[Path | None, typer.Option(help="folder for growth.json, growth.md and growth.svg")] = None,
    only: Annotated[str | None, typer.Option(help="one table only, for instance rows, depth or link")] = None,
    as_json: Json = False,
) -> None:
    """How the cost of a tree grows with rows, features, bins, depth, gradient bits and the link. Takes ten minutes.

    Example: fedlearn bench growth --out docs/performance
    """
    from fedlearn.bench import growth as bench

    runs = bench.measure(only, show.err.print, lambda found: bench.write(found, out) if out is not None else None)
    print(json.dumps(runs) if as_json else bench.tables(runs))


@app.command()
def bits(
    file: Annotated[str | None, typer.Option(help="CSV in place of packaged and generated tables")] = None,
    label: Annotated[str, typer.Option(help="its label column")] = "label",
    positive: Positive = "1",
    leave_out: Annotated[list[str], typer.Option(help="a column that is no feature; may be repeated")] = ["id"],  # noqa: B006
    rows: Annotated[int, typer.Option(help="rows of the generated table; 0 leaves it out")] = 100_000,
    bins: Annotated[int, typer.Option(help="bins per feature")] = 32,
    depth: Annotated[int, typer.Option(help="depth of a tree")] = 5,
    trees: Annotated[int, typer.Option(help="number of trees")] = 60,
    folds: Annotated[int, typer.Option(help="cross-validation folds")] = 5,
    seeds: Annotated[int, typer.Option(help="rounding seeds to average over")] = 3,
    as_json: Json = False,
) -> None:
    """AUC by bits of a quantised gradient against XGBoost on the same folds, and bytes of a ciphertext word.

    Example: fedlearn bench bits --file credit.csv --label default --json
    """
    from fedlearn.bench import bits as bench

    setting = bench.Setting(
        seeds=seeds, folds=folds, trees=trees, depth=depth, bins=bins, rows=rows, file=file, label=label,
        positive=positive, leave_out=tuple(leave_out),
    )  # fmt: skip
    result = bench.measure(setting)
    if as_json:
        print(json.dumps(result))
        return
    for name, table in result["tables"].items():
        facts = {"XGBoost": table["auc_xgboost"]}
        facts |= {
            f"{n} bits": f"{found['auc']:.5f} ({found['difference']:+.5f})" for n, found in table["by_bits"].items()
        }
        show.out.print(show.facts_table(f"AUC on {name}", facts))
    widths = {
        f"{int(n):,} rows": ", ".join(f"{b}: {w or 'no'}" for b, w in found.items())
        for n, found in result["bytes_per_word"].items()
    }
    show.out.print(show.facts_table("bytes of a ciphertext word, by gradient bits", widths))


@app.command()
def glm(
    rows: Annotated[int, typer.Option(help="rows of the generated table")] = 100_000,
    active_features: ActiveFeatures = 15,
    passive_features: PassiveFeatures = 15,
    disclosure: Annotated[str, typer.Option(help="score: exact, partial scores meet; none: sealed")] = "score",
    family: Annotated[str, typer.Option(help="logistic, linear or poisson")] = "logistic",
    woe: Annotated[bool, typer.Option("--woe", help="replace columns by weights of evidence")] = False,
    active_file: ActiveFile = None,
    passive_file: PassiveFile = None,
    key: KeyColumn = "id",
    label: LabelColumn = "label",
    positive: Positive = "1",
    as_json: Json = False,
) -> None:
    """Regression, both parties as processes, against statsmodels on the pooled columns in the same run.

    Example: fedlearn bench glm --rows 100000 --active-features 15 --passive-features 15 --disclosure score --json
    """
    from fedlearn.bench import glm as bench

    setting = bench.Setting(
        rows=rows, active_features=active_features, passive_features=passive_features, disclosure=disclosure,
        family=family, woe=woe, active_file=active_file, passive_file=passive_file, key=key, label=label,
        positive=positive,
    )  # fmt: skip
    result = bench.measure(setting)
    _show("regression", result, as_json)


@app.command()
def woe(
    rows: Annotated[int, typer.Option(help="rows that both sides have")] = 100_000,
    passive_features: Annotated[int, typer.Option(help="features to screen")] = 500,
    bins: Annotated[int, typer.Option(min=2, max=255, help="bins per feature, without the one for missing")] = 10,
    as_json: Json = False,
) -> None:
    """Weights of evidence and information values of the passive features, both parties as processes.

    Example: fedlearn bench woe --rows 100000 --passive-features 500 --bins 10 --json
    """
    from fedlearn.bench import woe as bench

    result = bench.measure(rows, passive_features, bins)
    _show("screening", result, as_json)


@app.command()
def align(
    method: Annotated[str, typer.Option(help="ot, ecdh, auto or cached")] = "ot",
    mode: Annotated[str, typer.Option(help="mutual, one-sided or cardinality")] = "mutual",
    rows: Annotated[int, typer.Option(help="rows of the active side")] = 1_000_000,
    rows_b: Annotated[int | None, typer.Option(help="rows of the passive side; by default as many")] = None,
    openmined_rows: Annotated[int, typer.Option(help="rows for openmined-psi; 0 leaves it out")] = 2000,
    as_json: Json = False,
) -> None:
    """Private set intersection, both parties as processes, against openmined-psi on a sample.

    With method cached, preparing the passive side's table takes some 50 µs a row on two cores: a minute a million.

    Example: fedlearn bench align --method ot --rows 1000000 --json
    """
    from fedlearn.bench import align as bench

    result = bench.measure(method, mode, rows, rows if rows_b is None else rows_b, openmined_rows)
    _show("private set intersection", result, as_json)


def _show(title: str, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        show.out.print(show.facts_table(title, result))


@app.command()
def predict(
    rows: Annotated[int, typer.Option(min=10, help="rows of either side, all shared")] = 1_000_000,
    trees: Annotated[int, typer.Option(min=1, help="trees of the model")] = 100,
    depth: Annotated[int, typer.Option(min=1, max=12, help="their depth")] = 5,
    model: Annotated[str, typer.Option(help="trees, or scorecard of 30 features")] = "trees",
    aligned: Annotated[bool, typer.Option("--aligned", help="the alignment is on file")] = False,
    as_json: Json = False,
) -> None:
    """Batch scoring from Parquet to Parquet, alignment included, both parties as processes over mutual TLS.

    Example: fedlearn bench predict --rows 1000000 --trees 100 --json
    """
    from fedlearn.bench import predict as bench
    from fedlearn.errors import OwnMistake

    if model not in ("trees", "scorecard"):
        raise OwnMistake(f"--model {model} is not trees or scorecard")
    _show("batch scoring", bench.measure(bench.Setting(rows, trees, depth, model, aligned)), as_json)


@app.command()
def serve(
    mode: Annotated[str, typer.Option(help="plain or sealed")] = "plain",
    tells: Annotated[str, typer.Option(help="score, or with sealed also band")] = "score",
    model: Annotated[str, typer.Option(help="trees, or scorecard of 30 features")] = "trees",
    rate: Annotated[float, typer.Option(min=1, help="requests a second")] = 100.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="how long")] = 10.0,
    trees: Annotated[int, typer.Option(min=1, help="trees of the model")] = 100,
    depth: Annotated[int, typer.Option(min=1, max=12, help="their depth")] = 5,
    calls: Annotated[str, typer.Option(help="how the load asks: over streams, or in single calls")] = "streams",
    as_json: Json = False,
) -> None:
    """Online scoring, both services as processes over mutual TLS, the load on the same machine.

    Example: fedlearn bench serve --mode plain --rate 100 --seconds 10 --json
    """
    from fedlearn.bench import serve as bench
    from fedlearn.errors import OwnMistake

    if mode not in ("plain", "sealed") or tells not in ("score", "band") or (mode, tells) == ("plain", "band"):
        raise OwnMistake(f"--mode {mode} --tells {tells} is not plain, sealed, or sealed with the band alone")
    if model not in ("trees", "scorecard") or (mode, tells, model) == ("sealed", "score", "scorecard"):
        raise OwnMistake(f"--model {model} is not trees or scorecard; sealed, a scorecard tells the band alone")
    if calls not in ("streams", "single"):
        raise OwnMistake(f"--calls {calls} is not streams or single")
    setting = bench.Setting(rate, seconds, trees, depth, mode, tells, model, calls)  # type: ignore[arg-type]
    _show("online scoring", bench.measure(setting), as_json)
