"""Reading and checking a party's table: what is kept exactly, and that each error says what and where."""

import gzip
from datetime import date
from decimal import Decimal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.contract import Data, Key, Kind, Label
from fedlearn.data import fit_binning, load_table, make_table, normalise, table
from fedlearn.errors import (
    BadConfig,
    BadLabel,
    ColumnMissing,
    DuplicateIds,
    EmptyTable,
    FileMissing,
    NotFinite,
    NotNumeric,
    NullIds,
    OverBudget,
)

FEATURES: dict[str, Kind] = {"Income": "number", "Home": "category"}
PHONE = Key(column="phone", normalise="digits")
STATUS = Label(column="Status", positive="bad")
HEADER = "phone,Income,Home,Status\n"


def load(path, key=PHONE, features=FEATURES, label=None, max_rows=1_000_000, encode=None, **data):
    return load_table(Data(path=path, **data), key, features, label, max_rows, encode=encode)


@pytest.fixture
def write(tmp_path):
    def write(text, name="bank.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def texts(column):
    return column.dictionary_decode().to_pylist()


# --- what is read ----------------------------------------------------------------------------------


def test_csv_keeps_leading_zeros_order_and_gaps(write):
    path = write(HEADER + '0901 234,1.5,rent,bad\n0900-111, 2e3 ,"own, paid",good\n+45 77,NA,,good\n')
    table = load(path, label=STATUS)
    assert table.ids.to_pylist() == ["0901234", "0900111", "4577"]
    np.testing.assert_array_equal(table.columns["Income"], [1.5, 2000.0, np.nan])
    assert table.columns["Home"].type == pa.dictionary(pa.int32(), pa.string())
    assert texts(table.columns["Home"]) == ["rent", "own, paid", None]
    assert table.label.dtype == np.int8
    assert table.label.tolist() == [1, 0, 0]
    assert table.rows == 3
    assert table.skipped == {"null_ids": 0, "duplicate_ids": 0}


def test_the_label_column_need_not_exist_without_a_label(write):
    assert load(write("phone,Income,Home\n1,2,x\n")).label is None


@pytest.mark.parametrize(
    "text",
    [
        "phone,Income,Home\r\n01,2,#x\r\n\r\n02,3,y\r\n",
        "\ufeffphone,Income,Home\n01,2,#x\n02,3,y",
        "phone;Income;Home\n01;2;#x\n02;3;y\n",
        'phone\t"Inc,o,me"\tIncome\tHome\n01\t\t2\t#x\n02\t\t3\ty\n',
        '"Home","phone","income","Income"\n"#x","01","9","2"\n"y","02","9","3"\n',
    ],
    ids=["crlf", "byte order mark", "semicolon", "tab", "quoted, names differ by case"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_dialects_of_csv(write, text, zipped):
    content = gzip.compress(text.encode()) if zipped else text
    table = load(write(content, "bank.csv.gz" if zipped else "bank.csv"))
    assert table.ids.to_pylist() == ["01", "02"]
    assert table.columns["Income"].tolist() == [2.0, 3.0]
    assert texts(table.columns["Home"]) == ["#x", "y"]


def test_a_path_is_not_a_pattern(write, tmp_path):
    folder = tmp_path / "year=2024 [a-z]*"
    folder.mkdir()
    write("phone,Income,Home\n1,1,x\n", "a.csv")
    path = write("phone,Income,Home\n2,2,y\n", folder / "?.csv")
    write("phone,Income,Home\n3,3,y\n", folder / "b.csv")
    assert load(path).ids.to_pylist() == ["2"]
    with pytest.raises(ColumnMissing):
        load(path, features={"year": "number"})


def test_parquet_of_every_useful_type(tmp_path):
    frame = pa.table(
        {
            "phone": pa.array([7, 8, 9], pa.int64()),
            "f": pa.array([1.5, None, float("nan")], pa.float32()),
            "i": pa.array([1, None, 2**60 + 1], pa.int64()),
            "d": pa.array([Decimal("1.25"), None, Decimal("-3.00")], pa.decimal128(10, 2)),
            "b": pa.array([True, False, None]),
            "s": pa.array([" 4.5", "NA", "6"]),
            "cat": pa.array(["x", None, "y"]).dictionary_encode(),
            "code": pa.array([1.0, None, 2.5]),
            "day": pa.array([date(2024, 1, 2), None, date(2024, 1, 3)]),
            "void": pa.nulls(3, pa.int32()),
            "Status": pa.array([1, 0, 1], pa.int8()),
        }
    )
    path = tmp_path / "t.parquet"
    pq.write_table(frame, path)
    numbers = ["f", "i", "d", "b", "s", "void"]
    kinds: dict[str, Kind] = {**dict.fromkeys(numbers, "number"), "cat": "category", "code": "category"}
    kinds["day"] = "category"
    table = load(path, features=kinds, label=Label(column="Status"))
    nan = np.nan
    expected = [[1.5, nan, nan], [1, nan, 2.0**60], [1.25, nan, -3], [1, 0, nan], [4.5, nan, 6], [nan] * 3]
    np.testing.assert_array_equal([table.columns[name] for name in numbers], expected)
    assert texts(table.columns["cat"]) == ["x", None, "y"]
    assert texts(table.columns["code"]) == ["1", None, "2.5"]
    assert texts(table.columns["day"]) == ["2024-01-02", None, "2024-01-03"]
    assert table.ids.to_pylist() == ["7", "8", "9"]
    assert table.label.tolist() == [1, 0, 1]


def test_csv_parquet_and_memory_give_the_same_table(tmp_path):
    rng = np.random.default_rng(0)
    n = 200_000  # more than one chunk of the reader, so that order and row numbers across chunks are tested
    frame = pa.table(
        {
            "phone": [f"0{i}" for i in rng.permutation(n)],
            "Income": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
            "Home": pa.array(rng.choice(["rent", "own", "other"], n)).dictionary_encode(),
            "Status": rng.choice(["good", "bad"], n),
        }
    )
    pd_frame = frame.to_pandas()
    pd_frame.to_csv(tmp_path / "t.csv", index=False)
    pq.write_table(frame, tmp_path / "t.parquet")
    from_csv = load(tmp_path / "t.csv", label=STATUS)
    from_parquet = load(tmp_path / "t.parquet", label=STATUS)
    memory = make_table(pd_frame["phone"], pd_frame, FEATURES, pd_frame["Status"], key=PHONE, positive="bad")
    assert from_csv.ids.to_pylist() == frame["phone"].to_pylist()
    assert from_csv.fingerprint() == from_parquet.fingerprint() == memory.fingerprint()

    # Encoded as it is read: the same bins, and a digest of the values that were let go, not of their bins.
    binning = fit_binning(memory, 8, FEATURES)
    encoded = [load(tmp_path / name, encode=binning.encode) for name in ("t.csv", "t.parquet")]
    for one in encoded:
        assert not one.columns
        np.testing.assert_array_equal(np.stack([one.encoded[name] for name in FEATURES]), binning.transform(memory))
        np.testing.assert_array_equal(one.take(np.array([5])).encoded["Home"], one.encoded["Home"][5:6])
    assert encoded[0].fingerprint() == encoded[1].fingerprint()
    moved = pd_frame.assign(Income=pd_frame["Income"].where(pd_frame.index != 190_000, np.nextafter(0.5, 1)))
    moved.to_csv(tmp_path / "moved.csv", index=False)
    assert load(tmp_path / "moved.csv", encode=binning.encode).fingerprint() != encoded[0].fingerprint()

    # The same file with a bad cell and a repeated row far down.
    broken = pd_frame.astype({"Income": object})
    broken.loc[190_000, "Income"] = "much"
    broken.to_csv(tmp_path / "broken.csv", index=False)
    with pytest.raises(NotNumeric, match=r"'Income' of .*broken.csv holds 'much' in row 190001"):
        load(tmp_path / "broken.csv", encode=binning.encode)
    pd_frame.loc[199_999, "phone"] = pd_frame.loc[150_000, "phone"]
    pd_frame.to_csv(tmp_path / "twice.csv", index=False)
    for how in (None, binning.encode):
        with pytest.raises(DuplicateIds, match="row 200000 repeats row 150001"):
            load(tmp_path / "twice.csv", encode=how)


def test_columns_in_memory_of_many_kinds():
    features: dict[str, Kind] = dict.fromkeys("abcdef", "number")
    columns = {
        "a": [1, None, 3],
        "b": np.array([1, 2, 3], np.int32),
        "c": pd.Series([1, None, 3], dtype="Int64"),
        "d": pd.Series(["1", None, "3"]),
        "e": pa.chunked_array([[1.0], [None, 3.0]]),
        "f": np.array([1, "2", None], object),
    }
    table = make_table(pd.Series([10.0, 11.0, 12.0]), columns, features, [True, False, True], positive="true")
    found = np.array(list(table.columns.values()))
    nan = np.nan
    np.testing.assert_array_equal(found, [[1, nan, 3], [1, 2, 3], [1, nan, 3], [1, nan, 3], [1, nan, 3], [1, 2, nan]])
    assert table.ids.to_pylist() == ["10", "11", "12"]
    assert table.label.tolist() == [1, 0, 1]


# --- rows ------------------------------------------------------------------------------------------


def test_take_and_fingerprint():
    table = make_table(
        ["a", "b", "c"], {"Income": [1, None, 3], "Home": ["x", None, "y"]}, FEATURES, [1, 0, 0], source="t"
    )
    last = table.take(np.array([2, 0]))
    assert last.ids.to_pylist() == ["c", "a"]
    assert last.columns["Income"].tolist() == [3, 1]
    assert texts(last.columns["Home"]) == ["y", "x"]
    assert last.label.tolist() == [0, 1]

    # By value, not by memory: a subset has the digest of the same rows made afresh, whatever its dictionary holds.
    again = make_table(["c", "a"], {"Income": [3, 1], "Home": ["y", "x"]}, FEATURES, [0, 1])
    assert last.fingerprint() == again.fingerprint()
    prints = {
        table.fingerprint(),
        last.fingerprint(),
        last.take(np.array([1, 0])).fingerprint(),
        make_table(["c", "a"], {"Income": [3, 1], "Home": ["y", "x"]}, FEATURES).fingerprint(),
        make_table(["c", "a"], {"Income": [3, 1], "Home": ["y", "x"]}, FEATURES, [1, 0]).fingerprint(),
        make_table(["c", "a"], {"Income": [3, 1], "Home": ["yx", None]}, FEATURES, [0, 1]).fingerprint(),
        make_table(["c", "a"], {"Income": [3, 1], "Home": [None, "yx"]}, FEATURES, [0, 1]).fingerprint(),
        make_table(["ca", "b"], {"Income": [3, 1], "Home": ["y", "x"]}, FEATURES, [0, 1]).fingerprint(),
        make_table(["c", "a"], {"Income": [3, 2], "Home": ["y", "x"]}, FEATURES, [0, 1]).fingerprint(),
    }
    assert len(prints) == 9


def test_rows_that_the_contract_allows_to_drop_are_counted(write):
    path = write(HEADER + "1,10,a,bad\n,20,b,\n2,30,c,good\n 1-,40,d,\n--,50,e,\n1,60,f,\n")
    table = load(path, Key(column="phone", normalise="digits", nulls="drop", duplicates="first"), label=STATUS)
    assert table.ids.to_pylist() == ["1", "2"]
    assert table.columns["Income"].tolist() == [10, 30]
    assert texts(table.columns["Home"]) == ["a", "c"]
    assert table.label.tolist() == [1, 0]
    assert table.skipped == {"null_ids": 2, "duplicate_ids": 2}


# --- identifiers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("digits", "+45 (0)12-34", "4501234"),
        ("digits", "٠١٢ x ３", "0123"),
        ("digits", "no digit", None),
        ("text", "  Jane.Doe@Example.org\t", "jane.doe@example.org"),
        ("text", "\u00a0STRASSE\u3000", "strasse"),
        ("text", "Straße", "strasse"),
        ("text", "ﬁ\u212b", "fi\u00e5"),  # a ligature, and the Ångström sign
        ("text", "A\u030a", "\u00e5"),  # decomposed
        ("text", " \u00a0", None),
        ("exact", " A ", " A "),
        ("exact", "", None),
    ],
)
def test_normalisation(how, text, expected):
    assert normalise(pa.array([text, None], pa.string()), how).to_pylist() == [expected, None]


@given(st.lists(st.none() | st.text(max_size=8), max_size=8), st.sampled_from(["digits", "text", "exact"]))
def test_normalising_twice_is_the_same_as_once(ids, how):
    once = normalise(pa.array(ids, pa.string()), how)
    assert normalise(once, how).equals(once)
    assert not pc.any(pc.equal(once, "")).as_py()


@given(st.text(st.characters(max_codepoint=127), max_size=8))
def test_the_vectorised_path_agrees_with_the_unicode_path(text):
    # A trailing no-break space sends the text the other way, and is trimmed.
    plain, odd = (normalise(pa.array([t], pa.string()), "text") for t in (text, text + "\u00a0"))
    assert plain.equals(odd)


def test_null_ids_name_count_and_first_row(write):
    path = write("phone,Income,Home\n1,2,a\nNA,3,b\n---,4,c\n")
    with pytest.raises(NullIds, match=r"bank.csv has 2 row\(s\) without identifier in column 'phone'.* rows 2, 3$"):
        load(path)


def test_duplicate_ids_name_count_and_rows_of_the_file(write):
    path = write("phone,Income,Home\n9,1,a\n,2,a\n5 5,3,b\n5-5,4,c\n55,5,c\n")
    with pytest.raises(DuplicateIds, match=r"bank.csv has 2 row\(s\).*'phone' occurred before.*row 4 repeats row 3"):
        load(path, Key(column="phone", normalise="digits", nulls="drop"))


@given(st.lists(st.sampled_from([None, "", "7", "17", "71", "171", "1771", "é", "名前"]), min_size=2, max_size=60))
def test_repeats_are_found_in_groups_of_identifiers_too(ids):
    def found():
        one = make_table([*ids, "x"], {"a": np.arange(len(ids) + 1)}, {"a": "number"}, key=loose)
        try:
            make_table([*ids, "x"], {"a": np.arange(len(ids) + 1)}, {"a": "number"}, key=strict)
        except DuplicateIds as error:
            return one.columns["a"].tolist(), one.skipped, str(error)
        return one.columns["a"].tolist(), one.skipped, None

    loose = Key(column="id", normalise="exact", nulls="drop", duplicates="first")
    strict = Key(column="id", normalise="exact", nulls="drop")
    at_once = found()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "_AT_ONCE", 1)
        assert found() == at_once
    firsts = list(dict.fromkeys(i for i in ids if i))
    assert at_once[0] == [*(ids.index(i) for i in firsts), len(ids)]


def test_fractions_are_no_identifiers():
    with pytest.raises(BadConfig, match=r"column 'id' of t holds a number in row 2"):
        make_table([1.0, 2.5], {"a": [1, 2]}, {"a": "number"}, source="t")
    with pytest.raises(BadConfig, match=r"column 'id' of t holds a number in row 2"):
        make_table(pa.array([1.0, 2.5]).dictionary_encode(), {"a": [1, 2]}, {"a": "number"}, source="t")


@pytest.mark.parametrize("how", ["digits", "text", "exact", "integer"])
@pytest.mark.parametrize("name", ["t.parquet", "t.duckdb"])
def test_decimals_are_identifiers_as_other_whole_numbers_are(tmp_path, how, name):
    def read(ids, scale=2):
        path, query = tmp_path / name, None
        path.unlink(missing_ok=True)
        decimals = pa.array([one and Decimal(one) for one in ids], pa.decimal128(30, scale))
        frame = pa.table({"id": decimals, "a": range(len(ids))})
        if name == "t.parquet":
            pq.write_table(frame, path)
        else:
            query = "SELECT * FROM t"
            with duckdb.connect(str(path)) as made:
                made.execute("CREATE TABLE t AS SELECT * FROM frame")
        key = Key(column="id", normalise=how, nulls="drop")
        return load_table(Data(path=path, query=query, missing=["9"]), key, {"a": "number"}, None, 100).ids.to_pylist()

    assert read(["123.00", None, "120", "9", "0"]) == ["123", "120", "0"]
    assert read(["123", "0", "10"], scale=10) == ["123", "0", "10"]
    for odd in ("1.50", "0.05", "100.01"):
        with pytest.raises(BadConfig, match=r"column 'id' of .* holds a number in row 3 that cannot be an identifier"):
            read(["1", None, odd])
    with pytest.raises(BadConfig, match="in row 2"):
        read(["1", "0.0000000001"], scale=10)


@pytest.mark.parametrize(
    "kind", [pa.decimal128(10, 2), pa.decimal32(7, 2), pa.decimal256(60, 20), pa.decimal128(5, -2)]
)
def test_decimals_of_every_width(kind):
    ids = pa.array([Decimal(300), Decimal(-12300), Decimal(0)], kind)
    for values in (ids, pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), ids)):
        read = make_table(values, {"a": [1, 2, 3]}, {"a": "number"}, key=Key(column="id", normalise="exact"))
        assert read.ids.to_pylist() == ["300", "-12300", "0"]


def test_decimals_as_categories_keep_their_scale():
    columns = {"a": pa.array([Decimal("1.50"), Decimal(2)], pa.decimal128(10, 2))}
    assert texts(make_table(["x", "y"], columns, {"a": "category"}).columns["a"]) == ["1.50", "2.00"]
    columns = {"a": pa.array([Decimal(300), Decimal(0)], pa.decimal128(5, -2))}
    assert texts(make_table(["x", "y"], columns, {"a": "category"}).columns["a"]) == ["300", "0"]


@pytest.mark.parametrize("wrap", [list, pd.Series, lambda ids: np.array(ids, object)])
def test_whole_numbers_beyond_64_bits(wrap):
    ids = wrap([2**70, 5, None])
    read = make_table(ids, {"a": ids}, {"a": "number"}, key=Key(column="id", normalise="digits", nulls="drop"))
    assert read.ids.to_pylist() == [str(2**70), "5"]
    assert read.columns["a"].tolist() == [2.0**70, 5]


# --- files -----------------------------------------------------------------------------------------


def test_missing_file_or_folder(tmp_path):
    with pytest.raises(FileMissing, match=r"cannot read .*none.csv: No such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(FileMissing, match=f"cannot read {tmp_path}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.xlsx", b"PK", r"t.xlsx is of an unknown format.*\.csv, \.csv\.gz or \.parquet"),
        ("t.parquet", b"PAR1 and then nothing PAR1", r"t.parquet cannot be read: "),
        ("t.parquet", b"", r"t.parquet cannot be read: "),
        ("t.csv.gz", b"not zipped", r"t.csv.gz cannot be read: "),
        (
            "t.csv.gz",
            gzip.compress(b"phone,Income,Home\n" + b"1,2,3\n" * 99, mtime=0)[:-12],
            r"t.csv.gz cannot be read: ",
        ),
        ("t.csv", b"phone,Income,Home\n1,2,a\n3,4\n", r"t.csv cannot be read: .*Line: 3; .*Columns: 3 Found: 2$"),
        ("t.csv", b"phone,Income,Home\n1,2,a,b\n", r"t.csv cannot be read: .*Line: 2; .*Columns: 3 Found: 4$"),
        ("t.csv", b'phone,Income,Home\n1,2,"a\n', r"t.csv cannot be read: .*Line: 2; .*unterminated quote"),
        ("t.csv", b"phone,Income,Home\n1,2,caf\xe9\n", r"t.csv cannot be read: .*Line: 2; .*utf-8"),
        ("t.csv", b"phone,Income,Home,\xe9\n1,2,a,b\n", r"t.csv cannot be read: its header is not UTF-8"),
        ("t.csv", "phone,Income,Home\n1,2,a\n".encode("utf-16"), r"t.csv cannot be read: its header is not UTF-8"),
        ("t.csv", b"phone,Income,Income,Home\n1,2,3,a\n", r"t.csv has more than one column 'Income'"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(write, name, content, sentence):
    path = write(content, name)
    with pytest.raises(BadConfig, match=sentence) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing_column_names_the_file_and_what_there_is(write):
    with pytest.raises(ColumnMissing, match=r"column 'Home' is not in .*bank.csv, which has: phone, income, home"):
        load(write("phone,income,home\n1,2,a\n"), features={"Home": "category"})
    with pytest.raises(ColumnMissing, match=r"column 'phone' is not in .*bank.csv"):
        load(write("id,Income,Home\n1,2,a\n"))
    with pytest.raises(ColumnMissing, match=r"column 'Status' is not in .*bank.csv"):
        load(write("phone,Income,Home\n1,2,a\n"), label=STATUS)


def test_missing_column_of_parquet_and_of_memory(tmp_path):
    pq.write_table(pa.table({"phone": ["1"], "INCOME": [1.0]}), tmp_path / "t.parquet")
    with pytest.raises(ColumnMissing, match=r"column 'Income' is not in .*t.parquet, which has: phone, INCOME$"):
        load(tmp_path / "t.parquet")
    with pytest.raises(ColumnMissing, match=r"column 'Home' is not in t, which has: Income$"):
        make_table([1], {"Income": [1]}, FEATURES, source="t")


@pytest.mark.parametrize("text", ["", "\n", "phone,Income,Home\n", "phone,Income,Home"])
def test_empty_tables(write, text):
    with pytest.raises(EmptyTable, match=r"bank.csv (has no rows|is empty)"):
        load(write(text))


def test_a_table_without_any_identifier_is_empty(write):
    with pytest.raises(EmptyTable, match=r"bank.csv has no row with an identifier in column 'phone'"):
        load(write("phone,Income,Home\n,1,a\n"), Key(column="phone", nulls="drop"))


def test_more_rows_than_allowed(write):
    path = write("phone,Income,Home\n1,2,a\n2,2,a\n3,2,a\n")
    assert load(path, max_rows=3).rows == 3
    with pytest.raises(OverBudget, match=r"bank.csv has more rows than the 2 "):
        load(path, max_rows=2)


# --- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["much", "1.2.3", "0x1F", "1_000", '"1,5"', "-", "1e", "١"])
def test_text_in_a_numeric_column(write, cell):
    path = write(f"phone,Income,Home\n1,1e-3,a\n2,,b\n3,{cell},c\n4,also,d\n")
    with pytest.raises(NotNumeric, match=r"column 'Income' of .*bank.csv holds .* in row 3") as caught:
        load(path)
    assert repr(cell.strip('"')) in str(caught.value)


def test_a_long_cell_is_cut_short_in_the_message():
    with pytest.raises(NotNumeric, match=r"holds 'y{40}\.\.\.' in row 2"):
        make_table([1, 2], {"a": ["1", "y" * 5_000]}, {"a": "number"})


def test_a_numeric_column_of_another_type(tmp_path):
    pq.write_table(pa.table({"phone": ["1"], "Income": [date(2024, 1, 1)]}), tmp_path / "t.parquet")
    with pytest.raises(NotNumeric, match=r"column 'Income' of .*t.parquet holds date32\[day\] from row 1"):
        load(tmp_path / "t.parquet", features={"Income": "number"})


def test_a_category_column_of_a_nested_type(tmp_path):
    pq.write_table(pa.table({"phone": ["1"], "Home": [{"a": 1}]}), tmp_path / "t.parquet")
    with pytest.raises(BadConfig, match=r"column 'Home' of .*t.parquet holds struct"):
        load(tmp_path / "t.parquet", features={"Home": "category"})


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_values(write, cell):
    with pytest.raises(NotFinite, match=r"column 'Income' of .*bank.csv holds an infinite value in row 2"):
        load(write(f"phone,Income,Home\n1,1,a\n2,{cell},b\n"))


def test_the_party_says_which_texts_are_missing(write):
    path = write("phone,Income,Home\n1,?,?\n2, ?,NA\n")
    table = load(path, missing=("?",))
    assert np.isnan(table.columns["Income"]).all()
    assert texts(table.columns["Home"]) == [None, "NA"]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["bad", "good", "other"], r"has 3 distinct values \('bad', 'good', 'other', ...\) where it must have two"),
        (["good", "", "bad"], r"is missing in 1 row\(s\), the first is row 2"),
        (["bad", "bad", "bad"], r"is constant: every row has 'bad'"),
        (["0", "1", "0"], r"has '0' and '1', but never the positive value 'bad'"),
    ],
)
def test_labels_that_cannot_be_trained_on(write, labels, sentence):
    path = write(HEADER + "".join(f"{i},1,a,{label}\n" for i, label in enumerate(labels)))
    with pytest.raises(BadLabel, match=rf"label column 'Status' of .*bank.csv {sentence}"):
        load(path, label=STATUS)


SPEND = Label(column="Spend")
GRADE = Label(column="Grade", classes=("low", "mid", "high"))


def load_target(write, rows, label, target, key=PHONE):
    """Rows of phone, label and weight."""
    path = write(f"phone,{label.column},W\n" + "".join(f"{row}\n" for row in rows))
    return load_table(Data(path=path), key, {}, label, 100, target)


@pytest.mark.parametrize(
    ("target", "cells", "expected"),
    [
        ("number", ["-1.5", " 2e3 ", "0"], [-1.5, 2000, 0]),
        ("count", ["0", "7", "0.5"], [0, 7, 0.5]),
    ],
)
def test_numbers_and_counts_as_labels(write, target, cells, expected):
    table = load_target(write, [f"{i},{cell},1" for i, cell in enumerate(cells)], SPEND, target)
    assert table.label.dtype == np.float64
    assert table.label.tolist() == expected
    assert table.weight is None


def test_classes_are_numbered_as_the_contract_lists_them(write):
    table = load_target(write, ["1,high,1", "2, low ,1", "3,mid,1", "4,high,1"], GRADE, "classes")
    assert table.label.tolist() == [2, 0, 1, 2]


def test_more_classes_than_a_byte_counts(write):
    names = tuple(f"c{k}" for k in range(300))
    label = Label(column="Grade", classes=names)
    table = load_table(
        Data(path=write("phone,Grade\n" + "".join(f"{k},{name}\n" for k, name in enumerate(names)))), PHONE, {}, label,
        1000, "classes",
    )  # fmt: skip
    assert table.label.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("label", "target", "cells", "error", "sentence"),
    [
        (SPEND, "number", ["1", "", "2"], BadLabel, r"label column 'Spend' of .*csv is missing in 1 row\(s\).* row 2"),
        (SPEND, "number", ["1", "x", "2"], NotNumeric, r"column 'Spend' of .*csv holds 'x' in row 2"),
        (SPEND, "number", ["1", "2", "inf"], NotFinite, r"column 'Spend' of .*csv holds an infinite value in row 3"),
        (SPEND, "number", ["7", "7.0", "7"], BadLabel, r"label column 'Spend' of .*csv is constant: every row has 7"),
        (
            SPEND,
            "count",
            ["1", "0", "-2"],
            BadLabel,
            r"label column 'Spend' of .*csv is negative in 1 row\(s\).* row 3",
        ),
        (SPEND, "count", ["1", "NA", "0"], BadLabel, r"label column 'Spend' of .*csv is missing in 1 row\(s\).* row 2"),
        (GRADE, "classes", ["low", "mid", "top"], BadLabel, r"not one of the contract's classes in 1 row\(s\).* in 3"),
        (GRADE, "classes", ["low", "", "mid"], BadLabel, r"label column 'Grade' of .*csv is missing or .* first in 2"),
        (GRADE, "classes", ["mid", "mid", "mid"], BadLabel, r"label column 'Grade' of .*csv is constant: .* 'mid'"),
    ],
)
def test_targets_that_cannot_be_trained_on(write, label, target, cells, error, sentence):
    rows = [f"{i},{cell},1" for i, cell in enumerate(cells)]
    with pytest.raises(error, match=sentence):
        load_target(write, rows, label, target)


@pytest.mark.parametrize("target", ["number", "classes", "binary"])
def test_weights_follow_their_rows(write, target):
    """Also past a row that the contract lets drop, whose own weight is not looked at."""
    cells = {"number": ["1", "2", "3"], "classes": ["low", "mid", "low"], "binary": ["1", "0", "1"]}[target]
    label = (GRADE if target == "classes" else SPEND).model_copy(update={"weight": "W"})
    rows = [f"5,{cells[0]},0.5", f",{cells[1]},-1", f"6,{cells[1]},2", f"7,{cells[2]},1e-3"]
    table = load_target(write, rows, label, target, Key(column="phone", nulls="drop"))
    assert table.weight.dtype == np.float64
    assert table.weight.tolist() == [0.5, 2, 0.001]
    assert table.take(np.array([2, 0])).weight.tolist() == [0.001, 0.5]
    lighter = load_target(write, [*rows[:3], f"7,{cells[2]},2e-3"], label, target, Key(column="phone", nulls="drop"))
    assert lighter.fingerprint() != table.fingerprint()


@pytest.mark.parametrize(
    ("cell", "error", "sentence"),
    [
        ("0", BadLabel, "weight column 'W' of .*csv is missing or not positive first in row 3"),
        ("-1", BadLabel, "weight column 'W' of .*csv is missing or not positive first in row 3"),
        ("", BadLabel, "weight column 'W' of .*csv is missing or not positive first in row 3"),
        ("inf", NotFinite, "column 'W' of .*csv holds an infinite value in row 3"),
        ("heavy", NotNumeric, "column 'W' of .*csv holds 'heavy' in row 3"),
    ],
)
def test_weights_that_cannot_be_used(write, cell, error, sentence):
    """Rows count as in the file, also after one that was dropped."""
    label = SPEND.model_copy(update={"weight": "W"})
    rows = ["5,1,1", ",2,1", f"6,3,{cell}", "7,4,1"]
    with pytest.raises(error, match=sentence):
        load_target(write, rows, label, "number", Key(column="phone", nulls="drop"))


def test_a_weight_column_that_is_not_there(write):
    with pytest.raises(ColumnMissing, match="column 'V' is not in"):
        load_target(write, ["1,1,1"], SPEND.model_copy(update={"weight": "V"}), "number")


def test_unequal_or_two_dimensional_columns_in_memory():
    with pytest.raises(BadConfig, match=r"column 'a' of t has 1 rows, but there are 2 identifiers"):
        make_table([1, 2], {"a": [1]}, {"a": "number"}, source="t")
    with pytest.raises(BadConfig, match=r"column 'label' of t has 3 rows"):
        make_table([1, 2], {"a": [1, 2]}, {"a": "number"}, [0, 1, 1], source="t")
    with pytest.raises(BadConfig, match=r"column 'a' of t must have one dimension, not 2"):
        make_table([1, 2], {"a": np.zeros((2, 2))}, {"a": "number"}, source="t")
