"""The registry and the audit log as files: what is entered stays as it was, and what was changed is found."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn import keys
from fedlearn.contract import Contract
from fedlearn.data import Binning, FeatureBins
from fedlearn.errors import BadAudit, BadConfig, FileMissing, OutputExists, Refused, WrongModel
from fedlearn.models import share as shares
from fedlearn.service import audit
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import Limiter, Memo, Refusal
from fedlearn.service.registry import Registry, compare
from fedlearn.service.scorer import TreesPassive

CONTRACT = Contract.model_validate({
    "name": "test", "purpose": "tests of the registry", "expires": "2999-12-31",
    "active": {"name": "bank", "features": {"income": "number"}},
    "passive": {"name": "platform", "features": {"spend": "number", "city": "category"}},
    "label": {"column": "bad"}, "align": {"key": {"column": "id"}},
})  # fmt: skip


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    keys.create_request(folder, "platform")
    return folder / "platform.key"


def saved(folder: Path, number: int) -> Path:
    binning = Binning((
        FeatureBins("spend", "number", np.array([1.0, 2.5, 7.0])),
        FeatureBins("city", "category", np.empty(0), ("Rome", "Bonn")),
    ))  # fmt: skip
    masks = np.random.default_rng(number).integers(0, 256, (9, 32), np.uint8)
    folder.mkdir(parents=True)
    share = shares.PassiveShare(bytes([number]) * 16, binning, np.arange(9, dtype=np.int64) % 2, masks)
    shares.save(share, folder, CONTRACT, "platform")
    (folder / "run.json").write_text(json.dumps({"job": "train", "rows_shared": number, "ledger": [{"a": number}]}))
    return folder


@pytest.fixture
def registry(tmp_path: Path, key: Path) -> Registry:
    made = Registry(tmp_path / "registry", key)
    for number in (1, 2):
        made.add(saved(tmp_path / f"share{number}", number), "credit", CONTRACT, "platform")
    return made


def states(registry: Registry) -> list[str]:
    return [entry.state for entry in registry.list()]


def test_versions_are_promoted_superseded_and_retired(registry: Registry, tmp_path: Path) -> None:
    assert [entry.label for entry in registry.list()] == ["credit-1", "credit-2"]
    assert registry.show("credit").facts["version"] == 2
    registry.promote("credit", 1)
    registry.promote("credit", 2, "challenger")
    assert states(registry) == ["champion", "challenger"]
    registry.promote("credit", 2)
    assert states(registry) == ["superseded", "champion"]
    registry.retire("credit", 1)
    assert states(Registry(registry.folder, registry._key)) == ["retired", "champion"]
    with pytest.raises(Refused):
        registry.promote("credit", 1)
    with pytest.raises(BadConfig):
        registry.promote("credit", 2, "king")
    with pytest.raises(FileMissing):
        registry.show("credit", 3)
    with pytest.raises(OutputExists):
        registry.add(tmp_path / "share1", "other", CONTRACT, "platform")
    differ = compare(*registry.list())
    assert differ["alignment.rows_shared"] == (1, 2)
    assert differ["state"] == ("retired", "champion")
    assert "contract_hash" not in differ


def test_a_registry_that_was_changed_is_found(registry: Registry, tmp_path: Path) -> None:
    share = registry.load(registry.show("credit", 1), CONTRACT, "platform")
    assert share.model_id == b"\1" * 16
    place = registry.folder / "models" / "credit-1" / "share.arrow"
    place.write_bytes((tmp_path / "share2" / "share.arrow").read_bytes())
    with pytest.raises(WrongModel, match="not the file"):
        registry.promote("credit", 1)
    with sqlite3.connect(registry.folder / "index.sqlite") as base:
        base.execute("UPDATE entries SET version = 3 WHERE version = 2")
    base.close()
    with pytest.raises(WrongModel, match="not signed"):
        registry.list()
    with sqlite3.connect(registry.folder / "index.sqlite") as base:
        base.execute("UPDATE entries SET version = 2 WHERE version = 3")
        base.execute("UPDATE states SET body = replace(body, 'added', 'champion')")
    base.close()
    with pytest.raises(WrongModel, match="state 1 "):
        registry.list()
    (registry.folder / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(WrongModel, match="cannot be read"):
        registry.list()


def changed(registry: Registry, statement: str, *values: int) -> None:
    """Let somebody write the index who has not the key."""
    with sqlite3.connect(registry.folder / "index.sqlite") as base:
        base.execute(statement, values)
    base.close()


@contextmanager
def meanwhile(registry: Registry, monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> Iterator[None]:
    """Whenever a transaction of ``registry`` has ended, the next of ``events`` happens."""
    opened, waiting = Registry._open, list(events)

    @contextmanager
    def disturbed(self: Registry) -> Iterator[sqlite3.Connection]:
        with opened(self) as base:
            yield base
        if self is registry and waiting:
            waiting.pop(0)()

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "_open", disturbed)
        yield


def test_a_model_that_is_retired_meanwhile_is_not_promoted(
    registry: Registry, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Registry(registry.folder, key)
    with meanwhile(registry, monkeypatch, lambda: other.retire("credit", 1)):
        registry.promote("credit", 1)
    assert states(registry) == ["retired", "added"]


def test_two_promotions_at_once_make_one_champion(
    registry: Registry, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(saved(tmp_path / "share3", 3), "credit", CONTRACT, "platform")
    other = Registry(registry.folder, key)
    with meanwhile(registry, monkeypatch, *(lambda n=n: other.promote("credit", n) for n in (2, 3))):
        registry.promote("credit", 1)
    assert states(registry).count("champion") == 1


def test_what_a_promotion_was_decided_on_is_locked(
    registry: Registry, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Registry(registry.folder, key)
    racing = threading.Thread(target=other.retire, args=("credit", 1))

    def check(self: Registry, entry: object) -> None:
        racing.start()
        racing.join(0.3)

    monkeypatch.setattr(Registry, "check_files", check)
    registry.promote("credit", 1)
    racing.join()
    assert states(registry) == ["retired", "added"]


def test_a_state_that_was_taken_out_is_found(registry: Registry) -> None:
    registry.retire("credit", 1)
    registry.promote("credit", 2)
    for seq in (1, 3):
        kept = (registry.folder / "index.sqlite").read_bytes()
        changed(registry, "DELETE FROM states WHERE seq = ?", seq)
        for attempt in (registry.list, lambda: registry.promote("credit", 1), lambda: registry.retire("credit", 2)):
            with pytest.raises(WrongModel, match=rf"state {seq} .* is missing"):
                attempt()
        (registry.folder / "index.sqlite").write_bytes(kept)
    changed(registry, "DELETE FROM entries WHERE version = 1")
    with pytest.raises(WrongModel, match="lacks a model"):
        registry.list()


def test_an_entry_without_its_states_is_found(registry: Registry) -> None:
    changed(registry, "DELETE FROM states WHERE seq = 2")
    with pytest.raises(WrongModel, match=r"states of model credit-2 .* are missing"):
        registry.list()


@pytest.mark.parametrize(
    "damage",
    [
        "SET body = 'no JSON'", "SET body = '[1]'", "SET body = NULL", "SET body = x'ff00'", "SET signature = NULL",
        "SET body = CAST(x'ff' AS TEXT)", "SET signature = x''", "SET signature = 'text'", "SET body = '{}'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["entries", "states"])
def test_damage_to_the_index_is_a_wrong_model(registry: Registry, key: Path, damage: str, table: str) -> None:
    changed(registry, f"UPDATE {table} {damage} WHERE version = 1")
    for attempt in (registry.list, lambda: registry.promote("credit", 2), lambda: registry.resign(key)):
        with pytest.raises(WrongModel, match=r"not signed|cannot be read"):
            attempt()


@pytest.mark.parametrize("to", ["entries", "states"])
def test_a_signed_row_of_the_other_table_is_refused(registry: Registry, to: str) -> None:
    other = ({"entries", "states"} - {to}).pop()
    row = f"(SELECT body, signature FROM {other} WHERE version = 1)"  # noqa: S608
    changed(registry, f"UPDATE {to} SET (body, signature) = {row} WHERE version = 1")  # noqa: S608
    with pytest.raises(WrongModel, match="not signed"):
        registry.list()


def test_an_addition_that_was_interrupted_does_not_block_the_name(registry: Registry, tmp_path: Path) -> None:
    share, models = saved(tmp_path / "share3", 3), registry.folder / "models"
    for left in ("credit-3", f".credit-3.partial-{os.getpid()}"):  # killed after the rename, and before it
        (models / left).mkdir()
        (models / left / "share.arrow").write_bytes(b"left")
    entry = registry.add(share, "credit", CONTRACT, "platform")
    assert entry.label == "credit-3"
    assert registry.load(entry, CONTRACT, "platform").model_id == b"\3" * 16
    others = [path for path in models.iterdir() if path.name not in {e.label for e in registry.list()}]
    assert [path.name.startswith(".credit-3.left-") for path in others] == [True]
    assert (others[0] / "share.arrow").read_bytes() == b"left"


def test_the_files_of_a_lost_index_are_not_moved_from_under_their_addition(registry: Registry, key: Path) -> None:
    place = registry.folder / "models" / "credit-1"
    (registry.folder / "index.sqlite").unlink()
    with pytest.raises(OutputExists):
        Registry(registry.folder, key).add(place, "credit", CONTRACT, "platform")
    assert (place / "share.arrow").is_file()


@pytest.mark.parametrize("name", ['../../escaped"x', "", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "ä", "x" * 64])
def test_what_is_no_name_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    share, before = saved(tmp_path / "share3", 3), sorted(tmp_path.rglob("*"))
    with pytest.raises(BadConfig, match="1 to 63 letters"):
        registry.add(share, name, CONTRACT, "platform")
    assert sorted(tmp_path.rglob("*")) == before
    assert registry.add(share, "A.b_c-1" + "x" * 56, CONTRACT, "platform").facts["version"] == 1


def test_a_new_key_signs_anew_what_the_old_one_signed(registry: Registry, key: Path, tmp_path: Path) -> None:
    keys.create_request(tmp_path, "platform")
    fresh = Registry(registry.folder, tmp_path / "platform.key")
    with pytest.raises(WrongModel):
        fresh.list()
    with pytest.raises(WrongModel, match="not signed with"):
        fresh.resign(tmp_path / "platform.key")
    assert len(registry.list()) == 2
    assert fresh.resign(key) == 4
    assert [entry.label for entry in fresh.list()] == ["credit-1", "credit-2"]


def test_another_partys_share_is_not_entered(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(WrongModel, match="belongs to party"):
        registry.add(tmp_path / "share1", "credit", CONTRACT, "bank")
    other = CONTRACT.model_copy(update={"purpose": "another purpose altogether"})
    with pytest.raises(WrongModel, match="another contract"):
        registry.add(tmp_path / "share1", "credit", other, "platform")


def test_serving_can_be_agreed_for_a_model_that_is_there() -> None:
    served = Contract.model_validate(CONTRACT.model_dump(mode="json") | {"serving": {"purposes": ["loan"]}})
    assert served.hash() == CONTRACT.hash()
    assert served.serving_hash() != CONTRACT.serving_hash()


@settings(deadline=None)  # the first may compile
@given(
    st.one_of(st.floats(allow_infinity=False), st.sampled_from([1.0, 2.5, 7.0])), st.sampled_from(["Rome", "x", None])
)
def test_one_row_is_binned_as_a_table_is(spend: float, city: str | None) -> None:
    import pyarrow as pa

    from fedlearn.data import PartyTable

    features = (
        FeatureBins("spend", "number", np.array([1.0, 2.5, 7.0])),
        FeatureBins("city", "category", np.empty(0), ("Rome", "Bonn")),
    )
    masks = np.random.default_rng(5).integers(0, 256, (11, 32), np.uint8)
    share = shares.PassiveShare(bytes(16), Binning(features), np.arange(11, dtype=np.int64) % 2, masks)
    table = PartyTable(
        pa.array(["1"]), {"spend": np.array([spend]), "city": pa.array([city], pa.string()).dictionary_encode()}
    )
    bins = share.binning.transform(table)[:, 0]
    due = [bool(masks[s, bins[s % 2] // 8] >> (bins[s % 2] % 8) & 1) for s in range(11)]
    said = TreesPassive(share, ["city", "spend"]).part((city, spend)).sides
    assert [bool(said[s // 8] >> (s % 8) & 1) for s in range(11)] == due


# --- audit -------------------------------------------------------------------------------------------


def written(path: Path, key: Path, count: int = 5) -> Path:
    log = AuditLog(path, "platform", key)
    for n in range(count):
        log.add("answer", request=f"request-{n}", consent="C")
    log.close()
    return path


def test_a_log_goes_on_where_it_ended_even_in_the_middle_of_a_line(tmp_path: Path, key: Path) -> None:
    path = written(tmp_path / "audit.jsonl", key)
    first = audit.verify(path, key)
    assert first["kinds"] == {"open": 1, "answer": 5, "close": 1, "seal": 1}
    with path.open("ab") as file:
        file.write(b'{"seq":9,"at":"20')
    written(path, key)
    assert audit.verify(path, key)["entries"] == 2 * first["entries"]
    assert [e["torn_bytes"] for e in audit.entries(path) if e["kind"] == "open"] == [0, 17]


def test_a_full_disk_leaves_no_half_an_entry(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = AuditLog(tmp_path / "audit.jsonl", "platform", key), os.write
    monkeypatch.setattr(os, "write", lambda file, raw: write(file, raw[:20]))
    with pytest.raises(OSError, match="in full"):
        log.add("answer", request="request-1")
    monkeypatch.setattr(os, "write", write)
    log.add("answer", request="request-2")
    log.close()
    found = [entry.get("request") for entry in audit.entries(tmp_path / "audit.jsonl") if entry["kind"] == "answer"]
    assert found == ["request-2"]


def test_one_process_at_a_time(tmp_path: Path, key: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", "platform", key)
    with pytest.raises(OutputExists):
        AuditLog(tmp_path / "audit.jsonl", "platform", key)
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.add("answer")


def test_any_changed_byte_is_found(tmp_path: Path, key: Path) -> None:
    path = written(tmp_path / "audit.jsonl", key, 2)
    raw = path.read_bytes()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1 + at % 255
        path.write_bytes(changed)
        with pytest.raises(BadAudit):
            list(audit.entries(path))


def test_left_out_made_up_and_signed_by_another(tmp_path: Path, key: Path) -> None:
    path = written(tmp_path / "audit.jsonl", key)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(BadAudit, match="line 3"):
        audit.verify(path)
    keys.create_request(tmp_path, "mallory")
    forged = written(tmp_path / "forged.jsonl", tmp_path / "mallory.key")
    audit.verify(forged)
    with pytest.raises(BadAudit, match="not signed"):
        audit.verify(forged, key)


def logged(path: Path, key: Path, entries: list[tuple[str, dict[str, Any]]]) -> Path:
    log = AuditLog(path, "party", key)
    for kind, facts in entries:
        log.add(kind, **facts)
    log.close()
    return path


def test_logs_that_do_not_agree(tmp_path: Path, key: Path) -> None:
    one = {"request": "request-1", "consent": "C-1"}
    both = [("ask", one), ("score", {**one, "fallback": False})]
    active = logged(tmp_path / "active", key, both)
    assert audit.agree(active, logged(tmp_path / "passive", key, [("answer", one)]))["scored"] == 1
    with pytest.raises(BadAudit, match="no answer"):
        audit.agree(active, logged(tmp_path / "silent", key, []))
    with pytest.raises(BadAudit, match="never asked"):
        audit.agree(active, logged(tmp_path / "invented", key, [("answer", {**one, "consent": "C-2"})]))


# --- limits and repeats ------------------------------------------------------------------------------


def test_limits_by_second_and_day() -> None:
    now = [0.0]
    limit = Limiter(2, 5, lambda: now[0])
    for _ in range(2):
        limit.take()
    with pytest.raises(Refusal, match="a second"):
        limit.take()
    now[0] = 10.0
    for _ in range(2):
        limit.take()
    now[0] = 20.0
    limit.take()
    with pytest.raises(Refusal, match="a day"):
        limit.take()


def test_a_repeated_request_is_answered_the_same_once() -> None:
    memo, calls = Memo(2), []

    def work() -> bytes:
        calls.append(1)
        return bytes([len(calls)])

    assert memo.once("a", b"x", work) == memo.once("a", b"x", work) == b"\1"
    with pytest.raises(Refusal, match="another request"):
        memo.once("a", b"y", work)

    def fail() -> bytes:
        raise Refusal("unknown-applicant", "not there")

    with pytest.raises(Refusal):
        memo.once("b", b"x", fail)
    assert memo.once("b", b"x", work) == b"\2"
    memo.once("c", b"x", work)
    assert memo.once("a", b"x", work) == b"\4"  # the oldest was forgotten
