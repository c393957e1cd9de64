"""Tables from PostgreSQL: a real server of Debian's packages, for the length of these tests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.cli.party import _overrides
from fedlearn.contract import Data, Key, load_party
from fedlearn.data import PartyTable, fit_binning, load_table, postgres
from fedlearn.errors import BadConfig, ColumnMissing, DuplicateIds, FedlearnError, FileMissing, NotFinite, OverBudget
from tests.parties import make_pair
from tests.servers import PASSWORD, Postgres, postgres_server

FEATURES = {"income": "number", "work": "category"}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def customers(server: Postgres) -> Postgres:
    server.run(
        "CREATE SEQUENCE numbers",
        "CREATE TABLE customers "
        "(phone text, income numeric(10, 2), debt float8, age int2, vip bool, born date, work text)",
        """INSERT INTO customers VALUES
        ('0612 345 678', 1200.50, 1.5, 30, true, '1990-01-02', 'baker'),
        ('0698 765 432', NULL, 'NaN', NULL, NULL, NULL, ' '),
        ('0611 111 111', 0.1, -2e300, 41, false, '1970-12-31', 'cook')""",
    )
    return server


def table(url: str, query: str, features: dict[str, str] = FEATURES, rows: int = 100_000) -> PartyTable:
    data = Data.model_validate({"url": url, "query": query})
    return load_table(data, Key(column="phone", normalise="digits"), features, None, rows)  # type: ignore[arg-type]


def test_every_type_that_a_table_may_have(customers: Postgres) -> None:
    kinds = {"income": "number", "debt": "number", "age": "number", "vip": "category", "born": "category"}
    read = table(customers.url(), "SELECT * FROM customers ORDER BY age;", kinds | {"work": "category"})
    assert read.ids.to_pylist() == ["0612345678", "0611111111", "0698765432"]
    due = {"income": [1200.5, 0.1, np.nan], "debt": [1.5, -2e300, np.nan], "age": [30, 41, np.nan]}
    for name, values in due.items():
        np.testing.assert_array_equal(read.columns[name], values)
    assert read.columns["vip"].to_pylist() == ["true", "false", None]
    assert read.columns["born"].to_pylist() == ["1990-01-02", "1970-12-31", None]
    assert read.columns["work"].to_pylist() == ["baker", "cook", None]


def test_batches(customers: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_BATCH", 700)
    query = "SELECT g AS phone, g / 2.0 AS income, CASE WHEN g > 1900 THEN 'w' || g % 3 END AS work FROM {} g"
    read = table(customers.url(), query.format("generate_series(1, 2000)"))
    assert read.ids.to_pylist() == [str(i) for i in range(1, 2001)]
    np.testing.assert_array_equal(read.columns["income"], np.arange(1, 2001) / 2)
    assert read.columns["work"].to_pylist()[1898:1902] == [None, None, "w2", "w0"]
    binning = fit_binning(read, 8, FEATURES)  # type: ignore[arg-type]
    data = Data.model_validate({"url": customers.url(), "query": query.format("generate_series(1, 2000)")})
    key = Key(column="phone", normalise="digits")
    encoded = load_table(data, key, FEATURES, None, 2000, encode=binning.encode).encoded  # type: ignore[arg-type]
    np.testing.assert_array_equal(list(encoded.values()), binning.transform(read))
    with pytest.raises(OverBudget, match="the query on PostgreSQL has more rows than the 1000"):
        table(
            customers.url(), query.format("(SELECT generate_series(1, 100000000) AS g)"), rows=1000
        )  # streamed: this is quick


def test_uuids(customers: Postgres) -> None:
    data = Data.model_validate(
        {"url": customers.url(), "query": "SELECT '{A0EEBC99-9c0b4ef8-bb6d6bb9-bd380a11}'::uuid AS u, 1 AS x"}
    )
    read = load_table(data, Key(column="u", normalise="uuid"), {"x": "number"}, None, 10)
    assert read.ids.to_pylist() == ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM customers RETURNING *",
        "SELECT * FROM customers; DELETE FROM customers",
        "WITH gone AS (DELETE FROM customers RETURNING *) SELECT * FROM gone",
        "SELECT phone, income, nextval('numbers') AS work FROM customers",
        "COMMIT",
        "SELECT",
        "",
        "nonsense",
        "SELECT 1 / 0 AS phone, 1 AS income, 1 AS work",
        "SELECT phone, ARRAY[1, 2] AS income, work FROM customers",
    ],
)
def test_queries_that_are_refused(customers: Postgres, query: str) -> None:
    """Nothing is written, whatever the query says."""
    with pytest.raises((BadConfig, ColumnMissing), match="the query on PostgreSQL") as caught:
        table(customers.url(), query)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert table(customers.url(), "TABLE customers").rows == 3


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT phone, income FROM customers", ColumnMissing),
        ("SELECT *, 1 AS work FROM customers", BadConfig),
        ("SELECT '1' AS phone, 'x' AS work, 1 AS income FROM customers", DuplicateIds),
        ("SELECT phone, work, 'Infinity'::float8 AS income FROM customers", NotFinite),
    ],
)
def test_results_that_are_refused(customers: Postgres, query: str, error: type[FedlearnError]) -> None:
    with pytest.raises(error):
        table(customers.url(), query)


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        (
            "postgresql://tester:hush-1734@/postgres?host=/nowhere",
            FileMissing,
            "cannot connect to PostgreSQL: .*nowhere",
        ),
        ("postgresql://tester:hush-1734@/postgres?hos=x", BadConfig, "not a PostgreSQL connection URL"),
        ("postgres-ql//tester:hush-1734@x", BadConfig, "not a PostgreSQL connection URL"),
        ("host=/nowhere-hush-1734 password=hush-1734", FileMissing, "cannot connect to PostgreSQL: OperationalError"),
    ],
)
def test_connections_that_fail_do_not_tell_the_password(url: str, error: type[FedlearnError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        table(url, "SELECT 1")
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in repr(Data.model_validate({"url": url, "query": "SELECT 1"}))


def test_a_wrong_password(customers: Postgres) -> None:
    with pytest.raises(FileMissing, match=r'password authentication failed for user "tester"$') as caught:
        table(customers.url(password="guess-88"), "SELECT 1")  # noqa: S106
    assert "guess-88" not in str(caught.value)


def test_the_party_file(customers: Postgres, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, tmp_path)
    pair.settings["bank"]["data"] = {"url": customers.url(), "query": "TABLE customers"}
    pair.write()
    party = load_party(pair.party_file("bank"))
    assert load_table(party.data, Key(column="phone"), {"income": "number"}, None, 10).rows == 3
    instead = load_party(pair.party_file("bank"), _overrides(tmp_path / "new.csv", None, None)).data
    assert (instead.path, instead.url, instead.query) == (tmp_path / "new.csv", None, None)


@pytest.mark.parametrize(
    "fields", [{}, {"url": "postgresql://x"}, {"url": "postgresql://x", "query": "x", "path": "y"}]
)
def test_a_party_file_names_one_source(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"exactly one of path and url|a url needs a query"):
        Data.model_validate(fields)
