"""Identifiers as people write them: values from the standards and the libraries' own documents, and tables of them."""

import uuid
from pathlib import Path

import duckdb
import numpy as np
import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedlearn.contract import Data, Key
from fedlearn.data import identifiers, load_table
from fedlearn.data.identifiers import canonical
from fedlearn.errors import (
    BadConfig,
    BadIds,
    ColumnMissing,
    DuplicateIds,
    EmptyTable,
    FedlearnError,
    NullIds,
    OverBudget,
)

UUID = "12345678-1234-5678-1234-56781234567a"
PHONE = Key(column="phone", normalise="phone", country="ES")
NIF = Key(column="nif", normalise="national-id", scheme="es.nif")


@pytest.mark.parametrize(
    ("key", "text", "due"),
    [
        (PHONE, " 612 34 56 78", "+34612345678"),
        (PHONE, "+34 612-345-678", "+34612345678"),
        (PHONE, "0034 612 345 678", "+34612345678"),
        (PHONE, "tel:+44 20 7946 0018 ext. 3", "+442079460018"),
        (PHONE, "６１２３４５６７８", "+34612345678"),
        (PHONE, "12", None),
        (PHONE, "none", None),
        (NIF, "54362315-K", "54362315K"),  # python-stdnum's own example
        (NIF, "x 2482300 w", "X2482300W"),
        (NIF, "54362315Z", None),
        (Key(column="id", normalise="national-id", scheme="pt.cc"), "00000000 0 zz4", "000000000ZZ4"),
        (Key(column="id", normalise="national-id", scheme="pt.cc"), "815٣297", None),
        (Key(column="id", normalise="national-id", scheme="de.idnr"), "36 574 261 809", "36574261809"),
        (Key(column="mail", normalise="email"), " Ana.Ruiz+x@Example.COM ", "ana.ruiz+x@example.com"),
        (Key(column="mail", normalise="email"), "a@bücher.example", "a@xn--bcher-kva.example"),
        (Key(column="mail", normalise="email"), "a@b", None),
        (Key(column="mail", normalise="email"), "a b@example.com", None),
        (Key(column="mail", normalise="email"), "@example.com", None),
        (Key(column="u", normalise="uuid"), "{" + UUID + "}", UUID),
        (Key(column="u", normalise="uuid"), "urn:uuid:" + UUID.replace("-", ""), UUID),
        (Key(column="u", normalise="uuid"), UUID.upper(), UUID),
        (Key(column="u", normalise="uuid"), "1234", None),
        (Key(column="u", normalise="uuid"), "1_234567812345678123456781234567", None),
        (Key(column="u", normalise="uuid"), "0x123456781234567812345678123456", None),
        (Key(column="u", normalise="uuid"), "+1234567812345678123456781234567", None),
        (Key(column="u", normalise="uuid"), "１" + UUID[1:], None),
        (Key(column="n", normalise="integer"), "+0042", "42"),
        (Key(column="n", normalise="integer"), "-0", "0"),
        (Key(column="n", normalise="integer"), "4.0", None),
    ],
)  # fmt: skip
def test_canonical_forms(key: Key, text: str, due: str | None) -> None:
    assert canonical(pa.array([text, None, text, ""], pa.string()), key).to_pylist() == [due, None, due, None]


@pytest.mark.parametrize(
    "country", ["ES", "FR", "GB", "DE", "IT", "US", "CA", "KZ", "BR", "AR", "MX", "AU", "CI", "SM"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_plain_phones_are_as_the_library_has_them(country: str, data: st.DataObject) -> None:
    """Whatever is converted by columns, phonenumbers gives for the text as well."""
    code = str(phonenumbers.country_code_for_region(country))
    example = str(phonenumbers.example_number(country).national_number)
    body = st.text("0123456789", min_size=1, max_size=12) | st.sampled_from([example, example[:-1], example + "0"])
    start = st.sampled_from(["", "0", "1", "00", "+", "+" + code, "00" + code, "011" + code, code, f"+{code} (0)", "8"])
    mark = st.sampled_from(["", " ", "-", ".", "(", ")", "/", "x"])
    texts = [
        data.draw(start) + data.draw(mark) + (digits := data.draw(body))[:3] + data.draw(mark) + digits[3:]
        for _ in range(20)
    ]
    slow = identifiers._phone(country)
    for text, plain in zip(texts, identifiers._plain_phones(pa.array(texts), country).to_pylist(), strict=True):
        assert plain in (None, slow(text)), text


@pytest.mark.parametrize(
    ("country", "written"), [("ES", "612 345 678"), ("GB", "07911 123456"), ("US", "(212) 555-0123")]
)
def test_usual_phones_are_plain(country: str, written: str) -> None:
    texts = [written, phonenumbers.format_number(phonenumbers.parse(written, country), 1)]
    assert identifiers._plain_phones(pa.array(texts), country).null_count == 0


@pytest.mark.parametrize("key", [PHONE, NIF, Key(column="m", normalise="email"), Key(column="n", normalise="integer")])
@given(text=st.text(max_size=12))
def test_twice_is_as_once(key: Key, text: str) -> None:
    once = canonical(pa.array([text], pa.string()), key)
    assert canonical(once, key).equals(once)


@pytest.mark.parametrize(
    "fields", [{"normalise": "phone"}, {"normalise": "national-id"}, {"country": "ES"}, {"scheme": "es.nif"}]
)
def test_keys_must_be_complete(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be given with"):
        Key.model_validate({"column": "x"} | fields)


def test_unknown_countries_and_schemes() -> None:
    for key in (
        Key(column="x", normalise="phone", country="XX"),
        Key(column="x", normalise="national-id", scheme="es.util"),
        Key(column="x", normalise="national-id", scheme="zz.os"),
    ):
        with pytest.raises(BadConfig, match="not known"):
            canonical(pa.array(["1"]), key)


def table(folder: Path, *keys: Key, **columns: list[object]):
    path = folder / "table.parquet"
    first = next(iter(columns.values()))
    parquet.write_table(pa.table({**columns, "x": [1.0] * len(first)}), path)
    return load_table(Data(path=path), keys[0], {"x": "number"}, None, 100, also=keys[1:])


def test_an_invalid_identifier_is_an_error_or_missing(tmp_path: Path) -> None:
    with pytest.raises(BadIds, match=r"1 value\(s\) .* kind 'phone', the first is '12' in row 2"):
        table(tmp_path, PHONE, phone=["612345678", "12"])
    lenient = PHONE.model_copy(update={"invalid": "drop", "nulls": "drop"})
    read = table(tmp_path, lenient, phone=["612345678", "12", None])
    assert read.ids.to_pylist() == ["+34612345678"]
    assert read.skipped == {"null_ids": 2, "duplicate_ids": 0}
    with pytest.raises(NullIds):
        table(tmp_path, lenient.model_copy(update={"nulls": "error"}), phone=["612345678", "12"])
    odd = Key(column="cc", normalise="national-id", scheme="pt.cc", invalid="drop", nulls="drop")
    assert table(tmp_path, odd, cc=["815٣297", "00000000 0 ZZ4"]).ids.to_pylist() == ["000000000ZZ4"]


def test_messages_name_a_few_rows(tmp_path: Path) -> None:
    """Up to five, in this party's own messages only: the peer is told an exit code."""
    good = [f"61234567{i}" for i in range(10)]
    with pytest.raises(BadIds, match=r"the first is 'x' in row 2; the first are rows 2, 3, 4, 5, 6$"):
        table(tmp_path, PHONE, phone=["612345678", *["x"] * 7])
    with pytest.raises(NullIds, match=r"2 row\(s\) without identifier .*, the first are rows 2, 12$"):
        table(tmp_path, PHONE, phone=[good[0], None, *good[1:], ""])
    with pytest.raises(
        DuplicateIds,
        match=r"7 row\(s\) .* row 11 repeats row 10, row 12 repeats row 9, row 13 repeats row 10, "
        r"row 14 repeats row 1, row 15 repeats row 2$",
    ):
        table(tmp_path, PHONE, phone=[*good, good[9], good[8], good[9], *good[:4]])


def test_duplicates_that_only_look_different(tmp_path: Path) -> None:
    with pytest.raises(DuplicateIds, match="row 2 repeats row 1"):
        table(tmp_path, PHONE, phone=["612345678", "0034612345678"])


def test_uuids_and_integers_in_their_own_types(tmp_path: Path) -> None:
    one = uuid.UUID(int=7)
    column = pa.array([one.bytes, None], pa.binary(16))
    key = Key(column="u", normalise="uuid", nulls="drop")
    assert table(tmp_path, key, u=column).ids.to_pylist() == [str(one)]  # type: ignore[arg-type]
    assert table(tmp_path, Key(column="n", normalise="integer"), n=[7, -3]).ids.to_pylist() == ["7", "-3"]


def test_several_keys(tmp_path: Path) -> None:
    keys = [key.model_copy(update={"nulls": "drop", "duplicates": "first"}) for key in (PHONE, NIF)]
    read = table(
        tmp_path,
        *keys,
        phone=["612345678", None, "+34612345678", None, "612345679"],
        nif=["54362315K", "X2482300W", "54362315-K", None, None],
    )
    assert read.ids.to_pylist() == ["+34612345678", None, "+34612345679"]
    assert read.also[0].to_pylist() == ["54362315K", "X2482300W", None]
    assert read.keys == (read.ids, *read.also)
    assert read.skipped == {
        "null_ids phone": 2,
        "duplicate_ids phone": 1,
        "null_ids nif": 2,
        "duplicate_ids nif": 1,
        "rows_without_key": 2,
    }
    assert read.fingerprint() != table(tmp_path, keys[0], phone=["612345678", "612345679"]).fingerprint()


# --- tables in a database ----------------------------------------------------------------------------


def from_database(path: Path, query: str | None):
    key = Key(column="phone", normalise="phone", country="ES")
    return load_table(Data(path=path, query=query), key, {"x": "number"}, None, 5000)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "bank.duckdb"
    with duckdb.connect(str(path)) as made:
        made.execute("CREATE TABLE people AS SELECT 600000000 + i AS phone, i / 2 AS x FROM range(4000) t(i)")
    return path


def test_the_result_of_a_query(database: Path) -> None:
    read = from_database(database, "SELECT x, phone, 'odd' AS more FROM people WHERE phone % 2 = 1 ORDER BY phone")
    assert read.ids.to_pylist()[:2] == ["+34600000001", "+34600000003"]
    assert read.rows == 2000
    assert isinstance(read.columns["x"], np.ndarray)
    assert read.columns["x"][:2].tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (None, BadConfig),
        ("SELECT phone FROM people", ColumnMissing),
        ("SELECT * FROM nobody", BadConfig),
        ("DROP TABLE people", BadConfig),
        ("SELECT * FROM people; SELECT 1", BadConfig),
        ("SELECT * FROM read_csv('/etc/passwd')", BadConfig),
        ("SELECT * FROM people WHERE false", EmptyTable),
        ("SELECT * FROM people, range(2)", OverBudget),
    ],
)
def test_queries_that_will_not_do(database: Path, query: str | None, error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"bank\.duckdb"):
        from_database(database, query)


def test_a_query_needs_a_database(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("phone,x\n600000000,1\n")
    with pytest.raises(BadConfig, match="a query is for a DuckDB database"):
        from_database(tmp_path / "table.csv", "SELECT 1")
