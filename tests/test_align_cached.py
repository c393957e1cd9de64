"""Alignment against a prepared table: RFC 9497's vectors, Python sets, updates, limits, damage, rogues."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn import prepared as tables
from fedlearn.channel import Channel, simulate
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Contract, load_contract
from fedlearn.crypto import dh_oprf, ristretto
from fedlearn.errors import (
    AmbiguousIds,
    BadConfig,
    BeyondContract,
    CannotWrite,
    FedlearnError,
    InvalidPoint,
    Malformed,
    NoOverlap,
    NotInContract,
    NotPrepared,
    NullIds,
    OutOfOrder,
    OverBudget,
    PeerAborted,
    WrongLength,
)
from fedlearn.protocols import align_ecdh
from fedlearn.protocols.align import Alignment, align_active, align_passive
from fedlearn.protocols.align_cached import NO_SHELF, Prepared, Shelf, _look_up, as_values, version_of
from fedlearn.v1 import align_pb2 as pb
from tests.parties import make_keys, make_pair
from tests.test_align import GENERATOR, KINDS, LAWLESS, SMALL_ORDER, multiples, numbered, says
from tests.test_bench import bench

LIMITS = {"session": 100, "day": 1000, "total": 1000}


def contract(
    mode: str = "mutual", active: str = "active", pad_rows: int = 0, keys: int = 1, **queries: int
) -> Contract:
    return Contract.model_validate(
        {
            "name": "test",
            "purpose": "tests of alignment",
            "expires": "2999-01-01",
            "active": {"name": active, "features": {"x": "number"}},
            "passive": {"name": "passive", "features": {"y": "number"}},
            "label": {"column": "default"},
            "align": {
                "mode": mode,
                "method": "cached",
                "queries": LIMITS | queries,
                "pad_rows": pad_rows,
                "key": {"column": "phone"},
                "also": [{"column": f"key-{k}"} for k in range(1, keys)],
            },
            "budget": {"rows": 100_000},
        }
    )


def listed(ids: list[bytes]) -> pa.Array:
    return pa.array(ids, pa.large_binary())


def prepare(folder: Path, ids: list[bytes], agreed: Contract | None = None) -> tables.Done:
    return tables.prepare(folder, listed(ids), agreed or contract(), lambda done, total: None)


def run(
    folder: Path, active: list[bytes], passive: list[bytes], agreed: Contract | None = None, shelf: Shelf = NO_SHELF
) -> tuple[Alignment, Alignment, dict[str, int]]:
    """Both results, and bytes by message."""
    agreed = agreed or contract()
    prepared = tables.load(folder, listed(passive), agreed)
    sizes: dict[str, int] = {}

    def act(channel: Channel) -> Alignment:
        result = align_active(channel, active, agreed, shelf=shelf)
        sizes.update({line["message"]: line["bytes"] for line in channel.ledger.lines()})
        return result

    a, p = simulate(act, lambda channel: align_passive(channel, passive, agreed, prepared=prepared))
    return a, p, sizes


def check(folder: Path, active: list[bytes], passive: list[bytes], shelf: Shelf = NO_SHELF) -> dict[str, int]:
    """Mutual, held against Python's sets."""
    a, p, sizes = run(folder, active, passive, shelf=shelf)
    assert a.id == p.id
    assert [active[i] for i in a.rows] == [passive[i] for i in p.rows]
    assert {active[i] for i in a.rows} == set(active) & set(passive)
    assert a.size == p.size == a.shared == p.shared == len(a.rows)
    return sizes


# --- the function ------------------------------------------------------------------------------------

KEY = bytes.fromhex("5ebcea5ee37023ccb9fc2d2019f9d7737be85591ae8652ffa9ef0f4d37063b0e")
BLIND = bytes.fromhex("64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706")


@pytest.mark.parametrize(
    ("item", "blinded", "answer", "output"),
    [
        (
            "00",
            "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c",
            "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e",
            "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3"
            "ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6",
        ),
        (
            "5a" * 17,
            "da27ef466870f5f15296299850aa088629945a17d1f5b7f5ff043f76b3c06418",
            "b4cbf5a4f1eeda5a63ce7b77c7d23f461db3fcab0dd28e4e17cecb5c90d02c25",
            "f4a74c9c592497375e796aa837e907b1a045d34306a749db9f34221f7e750cb4"
            "f2a6413a6bf6fa5e19ba6348eb673934a722a7ede2e7621306d18951e7cf2c73",
        ),
    ],
)
def test_vectors_of_rfc_9497(item: str, blinded: str, answer: str, output: str) -> None:
    """Appendix A.1.1: ristretto255-SHA512, mode OPRF."""
    items = [bytes.fromhex(item)]
    point = ristretto.raise_points(dh_oprf.hashed(items), BLIND)
    assert point.hex() == blinded
    answered = ristretto.raise_points(point, KEY)
    assert answered.hex() == answer
    opened = ristretto.raise_points(answered, ristretto.invert(BLIND))
    assert dh_oprf.output(items[0], opened).hex() == output
    assert dh_oprf.finalise(items, opened).hex() == dh_oprf.evaluate(items, KEY).hex() == output[:24]


def test_long_ids_have_inputs_of_their_own() -> None:
    long = [b"x" * 70_000, b"x" * 70_001, b"x" * 65_535]
    short = dh_oprf.inputs(long)
    assert len(set(short)) == 3
    assert short[2] == long[2]
    assert max(map(len, short[:2])) == 68


@settings(max_examples=50, deadline=None)
@given(st.sets(st.binary(min_size=12, max_size=12), min_size=1), st.data())
def test_look_up_of_any_bytes(table: set[bytes], data: st.DataObject) -> None:
    """Values that end in zero bytes, too, which NumPy's strings treat specially."""
    own = data.draw(st.lists(st.sampled_from(sorted(table)) | st.binary(min_size=12, max_size=12), unique=True))
    values = as_values(b"".join(sorted(table)))
    assert (np.sort(values) == values).all()
    for ascending in (True, False):
        mine, places = _look_up(as_values(b"".join(own)), values, ascending)
        assert [(own[i], j) for i, j in zip(mine, places, strict=True)] == [
            (one, j) for j, one in enumerate(sorted(table)) if one in own
        ]


# --- honest parties ----------------------------------------------------------------------------------

LISTS = st.lists(st.binary(max_size=3), min_size=1, max_size=12, unique=True)


@settings(max_examples=15, deadline=None)
@given(active=LISTS, passive=LISTS, mode=st.sampled_from(["mutual", "one-sided"]))
def test_against_sets(tmp_path_factory: pytest.TempPathFactory, active: Any, passive: Any, mode: str) -> None:
    folder, agreed = tmp_path_factory.mktemp("cached"), contract(mode)
    prepare(folder, passive, agreed)
    shared = set(active) & set(passive)
    if not shared:
        with pytest.raises(NoOverlap):
            run(folder, active, passive, agreed)
    elif mode == "mutual":
        check(folder, active, passive)
    else:
        a, p, _ = run(folder, active, passive, agreed)
        assert (a.shared, p.shared, a.size) == (len(shared), None, len(passive))
        assert sorted(p.rows) == list(range(len(passive)))
        for mine, theirs in zip(a.rows, p.rows, strict=True):
            assert (mine >= 0) == (passive[theirs] in shared)
            assert mine < 0 or active[mine] == passive[theirs]


@pytest.mark.parametrize(("sizes", "shared"), [((1, 4000), 1), ((3000, 500), 500), ((2000, 3000), 7)])
@pytest.mark.parametrize("mode", ["mutual", "cardinality"])
def test_longer_lists(tmp_path: Path, mode: str, sizes: tuple[int, int], shared: int) -> None:
    active = numbered(*range(sizes[0]))
    passive = numbered(*range(sizes[0] - shared, sizes[0] - shared + sizes[1]))
    agreed = contract(mode, session=5000, total=5000, day=5000)
    prepare(tmp_path, passive, agreed)
    a, p, _ = run(tmp_path, active, passive, agreed)
    assert a.shared == p.shared == shared
    if mode == "mutual":
        assert {(active[i], passive[j]) for i, j in zip(a.rows, p.rows, strict=True)} == {
            (one, one) for one in set(active) & set(passive)
        }


def test_rows_may_stand_in_another_order(tmp_path: Path) -> None:
    prepare(tmp_path, numbered(*range(50)))
    check(tmp_path, numbered(*range(40, 60)), numbered(*range(49, -1, -1)))


def test_the_table_is_sent_once_and_then_what_changed(tmp_path: Path) -> None:
    shelf, asks = tables.shelf(tmp_path / "active"), numbered(3, 4, 500, 900)
    folder, first = tmp_path / "passive", numbered(*range(400))
    assert prepare(folder, first).evaluated == 400
    assert check(folder, asks, first, shelf)["AlignUpdate"] > 400 * 12
    assert check(folder, asks, first, shelf)["AlignUpdate"] == 0

    second = numbered(*range(1, 400), 500, 501)
    done = prepare(folder, second)
    assert (done.rows, done.evaluated, done.removed) == (401, 2, 1)
    third = numbered(0, *range(4, 400), 500)  # 0 is back; 1, 2, 3, 501 have gone
    done = prepare(folder, third)
    assert (done.evaluated, done.removed) == (1, 4)
    by_way_of_second = tables.shelf(tmp_path / "another")
    assert 0 < check(folder, asks, third, shelf)["AlignUpdate"] < 10 * 14
    check(folder, asks, third, by_way_of_second)
    assert check(folder, asks, third, by_way_of_second)["AlignUpdate"] == 0


def test_every_earlier_version_can_be_brought_up_to_date(tmp_path: Path) -> None:
    folder, draw = tmp_path / "passive", np.random.default_rng(5)
    seen, rows = [], list(range(30))
    for step in range(6):
        rows = [r for r in range(30) if draw.random() < 0.7] if step else rows
        prepare(folder, numbered(*rows))
        shelf = tables.shelf(tmp_path / f"active-{step}")
        check(folder, numbered(*range(30)), numbered(*rows), shelf)
        seen.append(shelf)
        for earlier in seen:
            sizes = check(folder, numbered(*range(30)), numbered(*rows), earlier)
            assert sizes["AlignUpdate"] <= 36 * 12


def test_an_unchanged_table_stays_the_version_it_is(tmp_path: Path) -> None:
    one = prepare(tmp_path, numbered(1, 2, 3))
    two = prepare(tmp_path, numbered(3, 2, 1))
    assert (two.evaluated, two.removed, two.version, two.key) == (0, 0, one.version, one.key)


def test_what_was_kept_and_damaged_is_sent_anew(tmp_path: Path) -> None:
    shelf, ids = tables.shelf(tmp_path / "active"), numbered(*range(20))
    prepare(tmp_path / "passive", ids)
    check(tmp_path / "passive", ids, ids, shelf)
    file = next((tmp_path / "active").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert check(tmp_path / "passive", ids, ids, shelf)["AlignUpdate"] > 240


# --- preparation -------------------------------------------------------------------------------------


def test_preparation_goes_on_where_it_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH", 10)
    ids, said = listed(numbered(*range(55))), []

    def killed(done: int, total: int) -> None:
        said.append((done, total))
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.prepare(tmp_path, ids, contract(), killed)
    assert said == [(10, 55), (20, 55), (30, 55)]
    with (tmp_path / "pending.bin").open("ab") as file:
        file.write(b"\x0a\0\0\0\0\0\0\0half a batch")
    with pytest.raises(NotPrepared, match="no prepared table"):
        tables.load(tmp_path, ids, contract())
    assert tables.prepare(tmp_path, ids, contract(), lambda *_: None).evaluated == 25
    assert not (tmp_path / "pending.bin").exists()
    key = bytes.fromhex((tmp_path / "oprf.key").read_text())
    due = sorted(dh_oprf.evaluate([one], key) for one in numbered(*range(55)))
    assert tables.load(tmp_path, ids, contract()).values.tobytes() == b"".join(due)


def test_a_damaged_batch_is_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH", 10)

    def killed(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    ids = listed(numbered(*range(40)))
    with pytest.raises(KeyboardInterrupt):
        tables.prepare(tmp_path, ids, contract(), killed)
    pending = bytearray((tmp_path / "pending.bin").read_bytes())
    pending[len(pending) // 2] ^= 1  # in the second of three batches
    (tmp_path / "pending.bin").write_bytes(pending)
    assert tables.prepare(tmp_path, ids, contract(), lambda *_: None).evaluated == 30
    check(tmp_path, numbered(*range(35, 50)), numbered(*range(40)))


def test_two_preparations_at_once(tmp_path: Path) -> None:
    def nested(done: int, total: int) -> None:
        with pytest.raises(CannotWrite, match="another preparation"):
            prepare(tmp_path, numbered(1))

    assert tables.prepare(tmp_path, listed(numbered(1, 2)), contract(), nested).rows == 2


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    prepare(tmp_path / "p", numbered(1, 2))
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    for name in ("oprf.key", "table.bin", "asked.json"):
        assert (tmp_path / "p" / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["oprf.key", "table.bin", "asked.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, how: str) -> None:
    ids = numbered(*range(20))
    prepare(tmp_path, ids)
    path = tmp_path / name
    whole = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(
        whole[:-5] if how == "cut" else whole[:9] + bytes([whole[9] ^ 3]) + whole[10:]
    )
    with pytest.raises(NotPrepared):
        run(tmp_path, ids, ids)


def test_a_missing_key_beside_a_table_is_not_replaced(tmp_path: Path) -> None:
    prepare(tmp_path, numbered(1))
    (tmp_path / "oprf.key").unlink()
    with pytest.raises(NotPrepared, match="key"):
        prepare(tmp_path, numbered(1, 2))


def test_rows_that_came_or_went_are_named_by_number(tmp_path: Path) -> None:
    prepare(tmp_path, numbered(1, 2, 3))
    with pytest.raises(NotPrepared, match=r"2 of the 3 rows are not in the table .*, and 2 of that table are not"):
        tables.load(tmp_path, listed(numbered(3, 4, 5)), contract())


def test_another_peer_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, numbered(1))
    with pytest.raises(NotPrepared, match="give each its own"):
        prepare(tmp_path, numbered(1), contract(active="another"))


# --- limits ------------------------------------------------------------------------------------------


def test_questions_are_counted_over_sessions(tmp_path: Path) -> None:
    ids = numbered(*range(8))
    prepare(tmp_path, ids)
    run(tmp_path, ids, ids)
    run(tmp_path, ids[:3], ids)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert (asked["total"], asked["that_day"]) == (11, 11)
    prepare(tmp_path, [*ids, b"new"])  # an update does not forget
    with pytest.raises(OverBudget, match=r"make 19; the contract's align\.queries\.total is 18"):
        run(tmp_path, ids, [*ids, b"new"], contract(total=18))
    with pytest.raises(OverBudget, match=r"align\.queries\.day is 18"):
        run(tmp_path, ids, [*ids, b"new"], contract(day=18))
    (tmp_path / "asked.json").write_text(json.dumps(asked | {"day": "2000-01-01"}))
    run(tmp_path, ids, [*ids, b"new"], contract(day=18))
    assert json.loads((tmp_path / "asked.json").read_text())["total"] == 19


def test_nothing_is_answered_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one point is raised for a session that is refused; and what is counted stays counted."""
    ids = numbered(*range(8))
    prepare(tmp_path, ids)
    raised = []
    monkeypatch.setattr("fedlearn.protocols.align_ecdh.raise_theirs", lambda *_: raised.append(1))
    with pytest.raises(OverBudget):
        run(tmp_path, ids, ids, contract(total=7))
    assert not raised


def test_an_honest_side_does_not_ask_for_more_than_a_session_allows(tmp_path: Path) -> None:
    prepare(tmp_path, IDS)
    with pytest.raises(OverBudget, match=r"3 IDs to ask for; the contract's align\.queries\.session is 2"):
        simulate(
            lambda channel: align_active(channel, IDS, contract(session=2)),
            lambda channel: (
                channel.open(LAWLESS, "passive") or channel.send(pb.AlignOpen(rows=3)) or channel.receive(pb.AlignOpen)
            ),
        )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"pad_rows": 10}, "pad_rows in modes one-sided and cardinality"),
        ({"pad_rows": 101, "mode": "one-sided"}, "101"),
    ],
)
def test_what_cannot_be_is_refused_in_the_contract(fields: dict[str, Any], text: str) -> None:
    body = contract().model_dump()
    with pytest.raises(ValueError, match=text):
        Contract.model_validate(body | {"align": body["align"] | fields})


def test_a_side_that_prepared_nothing() -> None:
    with pytest.raises(NotPrepared, match="no prepared table of these rows"):
        simulate(lambda c: align_active(c, IDS, contract()), lambda c: align_passive(c, IDS, contract()))


# --- several keys ------------------------------------------------------------------------------------

Pair = tuple[str | None, str | None]


def columns(rows: list[Pair]) -> list[pa.Array]:
    return [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]


def by_two(
    folder: Path, active: list[Pair], passive: list[Pair], agreed: Contract, shelf: Shelf = NO_SHELF
) -> tuple[Alignment, Alignment, dict[str, int]]:
    tables.prepare(folder, columns(passive), agreed, lambda *_: None)
    prepared, sizes = tables.load(folder, columns(passive), agreed), {}

    def act(channel: Channel) -> Alignment:
        result = align_active(channel, columns(active), agreed, shelf=shelf)
        sizes.update({line["message"]: line["bytes"] for line in channel.ledger.lines()})
        return result

    a, p = simulate(act, lambda c: align_passive(c, columns(passive), agreed, prepared=prepared))
    return a, p, sizes


ACTIVE: list[Pair] = [("1", "a"), ("2", None), (None, "c"), ("4", "d"), ("5", "e")]
PASSIVE: list[Pair] = [("7", "d"), ("2", "z"), ("1", "a"), (None, "5"), ("8", "c"), ("c", "7")]


@pytest.mark.parametrize("mode", ["mutual", "one-sided"])
def test_the_first_key_that_matches(tmp_path: Path, mode: str) -> None:
    a, p, _ = by_two(tmp_path, ACTIVE, PASSIVE, contract(mode, keys=2))
    pairs = {(i, j) for i, j in zip(a.rows.tolist(), p.rows.tolist(), strict=True) if i >= 0}
    assert pairs == {(0, 2), (1, 1), (2, 4), (3, 0)}
    assert (a.by_key, p.by_key, a.shared) == ((2, 2), (), 4)
    assert (p.size, p.shared) == ((4, 4) if mode == "mutual" else (6, None))
    assert json.loads((tmp_path / "asked.json").read_text())["total"] == 10  # five rows ask for two keys each


KEYED = st.lists(st.tuples(*[st.none() | st.integers(0, 9).map(str)] * 2).filter(any), min_size=1, max_size=8).filter(
    lambda rows: all(len([x for x in c if x]) == len({x for x in c if x}) for c in zip(*rows, strict=True))
)


@settings(max_examples=15, deadline=None)
@given(active=KEYED, passive=KEYED)
def test_two_keys_against_a_loop(tmp_path_factory: pytest.TempPathFactory, active: Any, passive: Any) -> None:
    folder, agreed = tmp_path_factory.mktemp("cached"), contract(keys=2)
    pairs = {
        (i, j) for k in (0, 1) for i, x in enumerate(active) for j, y in enumerate(passive) if x[k] and x[k] == y[k]
    }
    if len(pairs) > min(len({i for i, _ in pairs}), len({j for _, j in pairs})):
        with pytest.raises(AmbiguousIds):
            by_two(folder, active, passive, agreed)
    elif not pairs:
        with pytest.raises(NoOverlap):
            by_two(folder, active, passive, agreed)
    else:
        a, p, _ = by_two(folder, active, passive, agreed)
        assert set(zip(a.rows.tolist(), p.rows.tolist(), strict=True)) == pairs


def test_updates_of_several_keys(tmp_path: Path) -> None:
    shelf, agreed, folder = tables.shelf(tmp_path / "active"), contract(keys=2), tmp_path / "passive"
    rows: list[Pair] = [(str(i), f"m{i}" if i % 3 else None) for i in range(60)]
    asks: list[Pair] = [("5", "m5"), (None, "m7"), ("99", "new"), ("41", None)]
    assert tables.prepare(folder, columns(rows), agreed, lambda *_: None).evaluated == 100
    assert by_two(folder, asks, rows, agreed, shelf)[2]["AlignUpdate"] > 60 * 24
    assert by_two(folder, asks, rows, agreed, shelf)[2]["AlignUpdate"] == 0  # rows without a key keep their value

    rows[7], rows[41] = ("7", "other"), ("98", "new")  # one key of a row changes; another row is replaced
    done = tables.prepare(folder, columns(rows), agreed, lambda *_: None)
    assert (done.rows, done.evaluated, done.removed) == (60, 3, 2)
    a, p, sizes = by_two(folder, asks, rows, agreed, shelf)
    assert 4 * 24 <= sizes["AlignUpdate"] < 5 * 24
    assert sorted(zip(a.rows.tolist(), p.rows.tolist(), strict=True)) == [(0, 5), (2, 41)]


def test_one_columns_ids_are_not_anothers(tmp_path: Path) -> None:
    agreed = contract(keys=2)
    with pytest.raises(NoOverlap):
        by_two(tmp_path, [("1", "2")], [("2", "1")], agreed)
    first, second = tables.load(tmp_path, columns([("2", "1")]), agreed).keys
    assert first != second
    assert dh_oprf.evaluate([b"1"], first) != dh_oprf.evaluate([b"1"], second)


def test_questions_of_all_keys_are_counted(tmp_path: Path) -> None:
    with pytest.raises((OverBudget, BeyondContract), match="10 IDs"):  # whichever side finds it first
        by_two(tmp_path, ACTIVE, PASSIVE, contract(keys=2, session=9))


def test_a_row_without_any_key(tmp_path: Path) -> None:
    with pytest.raises(NullIds, match="1 of the 2 rows to be prepared have no ID"):
        tables.prepare(tmp_path, columns([("1", "a"), (None, None)]), contract(keys=2), lambda *_: None)


def test_a_table_of_other_keys_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, numbered(1))
    with pytest.raises(NotPrepared, match="give each its own"):
        tables.load(tmp_path, columns([("1", "a")]), contract(keys=2))


# --- counting ----------------------------------------------------------------------------------------

COUNTING = contract("cardinality")


@settings(max_examples=15, deadline=None)
@given(active=LISTS, passive=LISTS)
def test_counts_against_sets(tmp_path_factory: pytest.TempPathFactory, active: Any, passive: Any) -> None:
    folder = tmp_path_factory.mktemp("cached")
    prepare(folder, passive, COUNTING)
    a, p, _ = run(folder, active, passive, COUNTING)
    assert a.shared == p.shared == a.size == len(set(active) & set(passive))
    assert a.id == p.id
    assert len(a.rows) == len(p.rows) == 0


def test_a_table_serves_one_count(tmp_path: Path) -> None:
    ids = numbered(*range(20))
    first = prepare(tmp_path, ids, COUNTING)
    again = tables.load(tmp_path, listed(ids), COUNTING)
    run(tmp_path, ids[:5], ids, COUNTING)
    with pytest.raises(NotPrepared, match="has served the one session"):
        tables.load(tmp_path, listed(ids), COUNTING)
    with pytest.raises(NotPrepared, match="has served the one session"):  # loaded before the other was spent
        simulate(lambda c: align_active(c, ids, COUNTING), lambda c: align_passive(c, ids, COUNTING, prepared=again))
    second = prepare(tmp_path, ids, COUNTING)
    assert (first.evaluated, second.evaluated) == (20, 20)
    assert first.key != second.key
    assert run(tmp_path, ids[:3], ids, COUNTING)[0].shared == 3
    assert json.loads((tmp_path / "asked.json").read_text())["total"] == 8  # of both keys
    prepare(tmp_path, ids, COUNTING)
    with pytest.raises(OverBudget, match=r"make 28; the contract's align\.queries\.total is 27"):
        run(tmp_path, ids, ids, contract("cardinality", total=27))


def test_a_table_is_spent_by_a_session_that_fails(tmp_path: Path) -> None:
    with pytest.raises(InvalidPoint):
        against_passive(
            tmp_path, says(OPEN, pb.AlignKept(), pb.AlignBlinded(points=multiples(1, 2) + bytes(32))), COUNTING
        )
    with pytest.raises(NotPrepared, match="has served"):
        tables.load(tmp_path, listed(IDS), COUNTING)


def test_no_table_changes_hands_once_spent(tmp_path: Path) -> None:
    """Two sessions at once: the second ends before a value of the table is sent."""
    prepare(tmp_path, IDS, COUNTING)
    prepared = tables.load(tmp_path, listed(IDS), COUNTING)
    run(tmp_path, IDS, IDS, COUNTING)
    seen = []

    def active(channel: Channel) -> None:
        channel.open(LAWLESS, "active")
        channel.send(OPEN)
        channel.send(pb.AlignKept())
        while True:
            seen.append(type(channel.receive(*KINDS)))

    with pytest.raises(NotPrepared):
        simulate(active, lambda c: align_passive(c, IDS, COUNTING, prepared=prepared))
    assert seen == [pb.AlignOpen, pb.AlignTable]


def test_a_key_that_names_ids_does_not_count_and_the_other_way_round(tmp_path: Path) -> None:
    prepare(tmp_path / "named", IDS)
    prepare(tmp_path / "counted", IDS, COUNTING)
    for folder, agreed in (("named", COUNTING), ("counted", contract())):
        with pytest.raises(NotPrepared, match="give each its own"):
            tables.load(tmp_path / folder, listed(IDS), agreed)
        with pytest.raises(NotPrepared, match="give each its own"):
            prepare(tmp_path / folder, IDS, agreed)


def test_answers_to_be_counted_cannot_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in another order than the questions, and the table has no value that depends on an ID by its name."""
    ids, orders = numbered(*range(40)), []

    def noted(points: bytes, honest: Any = align_ecdh.shuffled) -> bytes:
        after = honest(points)
        each = [points[i : i + 32] for i in range(0, len(points), 32)]
        orders.append([each.index(after[i : i + 32]) for i in range(0, len(after), 32)])
        return bytes(after)

    monkeypatch.setattr(align_ecdh, "shuffled", noted)
    prepare(tmp_path, ids, COUNTING)
    run(tmp_path, ids, ids, COUNTING)
    assert sorted(orders[0]) == list(range(40)) != orders[0]
    key = tables._own_key(tmp_path)
    points = ristretto.raise_points(dh_oprf.hashed(ids), key)
    table = (tmp_path / "table.bin").read_bytes()
    assert all(dh_oprf.unnamed(points)[i : i + 12] in table for i in range(0, 480, 12))
    assert not any(dh_oprf.evaluate([one], key) in table for one in ids)


def test_counting_keeps_nothing(tmp_path: Path) -> None:
    prepare(tmp_path / "passive", IDS, COUNTING)
    run(tmp_path / "passive", IDS, IDS, COUNTING, tables.shelf(tmp_path / "active"))
    assert not (tmp_path / "active").exists()


def test_each_key_is_counted_alone_and_columns_are_not_linked(tmp_path: Path) -> None:
    agreed = contract("cardinality", keys=2)
    a, p, _ = by_two(tmp_path, ACTIVE, PASSIVE, agreed)
    assert a.by_key == p.by_key == (2, 3)
    assert a.shared == p.shared == 3
    many: list[Pair] = [(str(i), f"m{i}") for i in range(50)]
    tables.prepare(tmp_path / "many", columns(many), agreed, lambda *_: None)
    values = tables.load(tmp_path / "many", columns(many), agreed).values.view("S12").reshape(50, 2)
    assert (values[1:] > values[:-1]).all()  # each column sorted for itself


# --- padding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["one-sided", "cardinality"])
def test_padded_lists_show_only_the_bound(tmp_path: Path, mode: str) -> None:
    agreed, traffic = contract(mode, pad_rows=30), []
    passive = numbered(*range(4, 24))
    for n, active in enumerate((numbered(*range(9)), numbered(4))):
        theirs = passive if mode == "one-sided" or n else passive[:7]
        prepare(tmp_path / str(n), theirs, agreed)
        a, p, sizes = run(tmp_path / str(n), active, theirs, agreed)
        assert a.shared == len(set(active) & set(theirs))
        if mode == "one-sided":
            assert a.size == p.size == 20
            assert {(active[i], theirs[j]) for i, j in zip(a.rows, p.rows, strict=True) if i >= 0} == {
                (one, one) for one in set(active) & set(theirs)
            }
        traffic.append({name: size for name, size in sizes.items() if name != "AlignCount"})
        assert json.loads((tmp_path / str(n) / "asked.json").read_text())["total"] == 30
    assert traffic[0] == traffic[1]


# --- rogues ------------------------------------------------------------------------------------------

IDS = numbered(1, 2, 3)
OPEN = pb.AlignOpen(rows=3)
TABLE = b"".join(sorted(hashlib.sha256(one).digest()[:12] for one in IDS))
VERSION = version_of(as_values(TABLE))
Rogue = Callable[[Channel], None]


def rogue_side(role: str, rogue: Rogue) -> Rogue:
    def side(channel: Channel) -> None:
        channel.open(LAWLESS, role)
        with pytest.raises(PeerAborted):
            rogue(channel)
        raise PeerAborted("done")

    return side


def against_active(rogue: Rogue) -> None:
    simulate(lambda channel: align_active(channel, IDS, contract()), rogue_side("passive", rogue))


def announced(**fields: bytes) -> list[Any]:
    return [OPEN, pb.AlignTable(**({"key": bytes(16), "version": VERSION} | fields))]


@pytest.mark.parametrize(
    ("messages", "error", "step"),
    [
        (announced(key=b"short"), WrongLength, "AlignTable"),
        (announced(version=b""), WrongLength, "AlignTable"),
        ([*announced(), pb.AlignUpdate(whole=True, added=TABLE[:-1])], WrongLength, "AlignUpdate"),
        ([*announced(), pb.AlignUpdate(whole=True, added=TABLE[12:])], WrongLength, "AlignUpdate"),
        ([*announced(), pb.AlignUpdate(whole=True, added=TABLE[12:] + TABLE[:12])], Malformed, "AlignUpdate"),
        ([*announced(), pb.AlignUpdate(whole=True, added=TABLE[:12] * 3)], Malformed, "AlignUpdate"),
        ([*announced(version=bytes(16)), pb.AlignUpdate(whole=True, added=TABLE)], Malformed, "AlignUpdate"),
        ([*announced(), pb.AlignUpdate()], WrongLength, "AlignUpdate"),
    ],
)
def test_bad_tables(messages: list[Any], error: type[FedlearnError], step: str) -> None:
    with pytest.raises(error, match=rf"the peer 'passive' .*, at step align\.{step}"):
        against_active(says(*messages))


@pytest.mark.parametrize(
    ("points", "error"),
    [
        (multiples(1, 2), WrongLength),
        (bytes(96), Malformed),
        (multiples(1, 2, 1), Malformed),
        *((multiples(1, 2) + point, InvalidPoint) for point in SMALL_ORDER),
    ],
)
def test_bad_points(tmp_path: Path, points: bytes, error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=r"the peer 'passive' .*, at step align\.AlignDoubled"):
        against_active(says(*announced(), pb.AlignUpdate(whole=True, added=TABLE), pb.AlignDoubled(points=points)))
    with pytest.raises(error, match=r"the peer 'active' .*, at step align\.AlignBlinded"):
        against_passive(tmp_path, says(OPEN, pb.AlignKept(), pb.AlignBlinded(points=points)))


def against_passive(folder: Path, rogue: Rogue, agreed: Contract | None = None) -> None:
    prepare(folder, IDS, agreed)
    prepared = tables.load(folder, listed(IDS), agreed or contract())
    simulate(rogue_side("active", rogue), lambda c: align_passive(c, IDS, agreed or contract(), prepared=prepared))


def test_replays_are_out_of_order(tmp_path: Path) -> None:
    questions = pb.AlignBlinded(points=multiples(1, 2, 3))
    with pytest.raises(OutOfOrder, match="AlignBlinded out of order"):
        against_passive(tmp_path, says(OPEN, pb.AlignKept(), questions, questions))
    update = pb.AlignUpdate(whole=True, added=TABLE)
    with pytest.raises(OutOfOrder, match="AlignUpdate out of order"):
        against_active(says(*announced(), update, update))


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([pb.AlignOpen(rows=101)], BeyondContract, "asks for 101 IDs where the contract allows 100"),
        ([OPEN, pb.AlignKept(version=b"1")], WrongLength, "sent a version of 1 bytes"),
        ([OPEN, pb.AlignKept(), pb.AlignBlinded(points=GENERATOR * 3)], Malformed, "more than once"),
    ],
)
def test_bad_questions(tmp_path: Path, messages: list[Any], error: type[FedlearnError], text: str) -> None:
    with pytest.raises(error, match=f"the peer 'active' .*{text}"):
        against_passive(tmp_path, says(*messages))


def test_answers_that_make_two_ids_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, IDS)
    monkeypatch.setattr(dh_oprf, "finalise", lambda items, points: tables.load(
        tmp_path, listed(IDS), contract()).values[:1].tobytes() * 3)  # fmt: skip
    with pytest.raises(Malformed, match="make two IDs one"):
        run(tmp_path, IDS, IDS)


def test_the_wrong_key_finds_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, IDS)
    good = tables.load(tmp_path, listed(IDS), contract())
    bad = Prepared(**{**vars(good), "keys": (ristretto.random_scalar(),)})
    with pytest.raises(NoOverlap):
        simulate(lambda c: align_active(c, IDS, contract()), lambda c: align_passive(c, IDS, contract(), prepared=bad))


# --- whole runs --------------------------------------------------------------------------------------


def test_prepare_and_align_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keyring = make_keys(tmp_path / "keys")

    def cached(pair: Any) -> None:
        pair.contract["align"]["method"] = "cached"

    pair = make_pair(tmp_path / "pair", keyring, change=cached)
    bank, platform = (str(pair.party_file(party)) for party in ("bank", "platform"))

    def fedlearn(*arguments: str) -> int:
        return command_line([*arguments, "--json", "--progress", "none"])

    assert fedlearn("simulate", bank, platform, "--job", "check") == NotPrepared.exit_code
    assert fedlearn("prepare", "--party", bank) == NotInContract.exit_code  # the small side prepares nothing
    capsys.readouterr()
    assert fedlearn("prepare", "--party", platform) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"] == len(pair.rows["platform"])
    assert fedlearn("simulate", bank, platform, "--job", "align") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["active"]["rows_shared"] == said["passive"]["rows_shared"] == 240
    assert {"AlignTable", "AlignKept", "AlignUpdate"} <= {line["message"] for line in said["active"]["ledger"]}
    assert fedlearn("simulate", bank, platform, "--job", "check") == 0
    asked = json.loads((pair.output("platform") / "prepared" / "asked.json").read_text())
    assert asked["total"] == len(pair.rows["bank"])  # a check asks nothing


def test_prepare_and_count_by_two_keys_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second key has two values, good and bad, of which the first row each keeps its own."""
    keyring = make_keys(tmp_path / "keys")

    def counted(pair: Any) -> None:
        also = {"column": "outcome", "duplicates": "first"}
        pair.contract["align"] |= {"method": "cached", "mode": "cardinality", "also": [also]}

    pair = make_pair(tmp_path / "pair", keyring, change=counted)
    bank, platform = (str(pair.party_file(party)) for party in ("bank", "platform"))

    def fedlearn(*arguments: str) -> int:
        return command_line([*arguments, "--json", "--progress", "none"])

    for _ in range(2):  # the second from a new key
        assert fedlearn("prepare", "--party", platform) == 0
        assert json.loads(capsys.readouterr().out)["evaluated"] == len(pair.rows["platform"]) + 2
        assert fedlearn("simulate", bank, platform, "--job", "align") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["active"]["rows_by_key"] == said["passive"]["rows_by_key"] == {"phone": 240, "outcome": 2}
        assert fedlearn("simulate", bank, platform, "--job", "check") == NotPrepared.exit_code
        capsys.readouterr()
        for party in ("bank", "platform"):
            shutil.rmtree(pair.output(party) / "alignment")


@pytest.mark.processes
def test_bench_of_counting() -> None:
    sizes = ("--rows", "40", "--rows-b", "300", "--openmined-rows", "0")
    said = bench("align", "--method", "cached", "--mode", "cardinality", *sizes)
    assert said["exact"]
    assert said["prepare_seconds"] > 0


@pytest.mark.processes
def test_bench() -> None:
    said = bench("align", "--method", "cached", "--rows", "40", "--rows-b", "300", "--openmined-rows", "0")
    assert said["exact"]
    assert said["prepare_seconds"] > 0 < said["seconds_with_table"]


def test_the_contract_file_says_the_limits(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, tmp_path)
    pair.contract["align"] |= {"method": "cached", "queries": {"session": 0}}
    pair.write()
    with pytest.raises(BadConfig, match=r"align\.queries\.session"):
        load_contract(pair.folder / "bank" / "contract.toml")
