"""The alignment that a party keeps: signed, reused for the same contract and IDs only, refused when touched.

And what is told of its size before it is made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fedlearn import jobs, keys
from fedlearn.cli.main import run as command_line
from fedlearn.data import make_table
from fedlearn.errors import BadCertificate, WrongModel
from fedlearn.protocols.align import Alignment
from tests.parties import make_keys, make_pair
from tests.test_align import contract

ALIGNMENT = Alignment(bytes(range(16)), "mutual", 2, 2, np.array([2, 0]), (2,), bytes(range(16, 32)))
TABLE = make_table(["1", "2", "3"], {"x": [1.0, 2.0, 3.0]}, {"x": "number"})


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keys.create_request(tmp_path / "keys", "active")
    return tmp_path / "keys" / "active.key"


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    """Where an alignment was kept."""
    where = tmp_path / "alignment"
    where.mkdir()
    own = jobs.Own("active", "active", contract("mutual"), TABLE, where, key=key)
    jobs.save_alignment(where, ALIGNMENT, own)
    return where


def test_it_is_read_back(folder: Path, key: Path) -> None:
    found = jobs._alignment_on_file(folder, contract("mutual"), TABLE, key)
    assert found is not None
    assert (found.id, found.mode, found.size, found.shared, found.by_key) == (ALIGNMENT.id, "mutual", 2, 2, (2,))
    assert found.rows.tolist() == [2, 0]
    assert found.table_key == ALIGNMENT.table_key
    head = json.loads((folder / "alignment.json").read_text())
    assert head["signed_by"] == keys.key_fingerprint(key)
    assert head["contract_hash"] == contract("mutual").hash().hex()


def test_it_is_not_used_for_another_contract_or_other_ids(folder: Path, key: Path) -> None:
    other = make_table(["1", "2", "4"], {"x": [1.0, 2.0, 3.0]}, {"x": "number"})
    assert jobs._alignment_on_file(folder, contract("mutual", "another"), TABLE, key) is None
    assert jobs._alignment_on_file(folder, contract("mutual"), other, key) is None
    assert jobs._alignment_on_file(folder / "nowhere", contract("mutual"), TABLE, key) is None


def test_what_was_touched_is_refused(folder: Path, key: Path) -> None:
    head = json.loads((folder / "alignment.json").read_text())
    rows = (folder / "rows.arrow").read_bytes()
    jobs.save_alignment(folder, ALIGNMENT, jobs.Own("active", "active", contract("mutual"), TABLE, folder, key=key))

    (folder / "alignment.json").write_text(json.dumps(head | {"alignment_id": "00" * 16}))
    with pytest.raises(WrongModel, match="not signed with this party's key"):
        jobs._alignment_on_file(folder, contract("mutual"), TABLE, key)
    (folder / "alignment.json").write_text(json.dumps(head, indent=1) + "\n")

    (folder / "rows.arrow").write_bytes(rows[:-100] + bytes([rows[-100] ^ 1]) + rows[-99:])
    with pytest.raises(WrongModel, match="not those that were signed"):
        jobs._alignment_on_file(folder, contract("mutual"), TABLE, key)
    (folder / "rows.arrow").write_bytes(rows)
    assert jobs._alignment_on_file(folder, contract("mutual"), TABLE, key) is not None

    (folder / "alignment.sig").unlink()
    with pytest.raises(WrongModel, match="damaged"):
        jobs._alignment_on_file(folder, contract("mutual"), TABLE, key)


def test_another_partys_alignment_is_refused(folder: Path, tmp_path: Path) -> None:
    keys.create_request(tmp_path / "other", "active")
    with pytest.raises(WrongModel, match="not signed with this party's key"):
        jobs._alignment_on_file(folder, contract("mutual"), TABLE, tmp_path / "other" / "active.key")


def test_only_keys_of_our_kind_sign(tmp_path: Path) -> None:
    path = tmp_path / "rsa.key"
    keys._write_private(path, rsa.generate_private_key(65537, 2048))  # type: ignore[arg-type]
    with pytest.raises(BadCertificate, match="cannot sign results"):
        keys.sign(path, b"")


@pytest.mark.parametrize(("mode", "told"), [("mutual", {500}), ("one-sided", {500, 280})])
def test_a_check_tells_padded_sizes(
    tmp_path: Path, mode: str, told: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As alignment itself does: in one-sided the passive side's list is what is trained on, and is not padded."""
    pair = make_pair(
        tmp_path, make_keys(tmp_path / "keys"), mode=mode, change=lambda p: p.contract["align"].update(pad_rows=500)
    )
    files = [str(pair.party_file(party)) for party in ("bank", "platform")]
    assert command_line(["simulate", *files, "--job", "check", "--json", "--progress", "none"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {said["active"]["peer_rows"], said["passive"]["peer_rows"]} == told
    assert said["active"]["rows"] == said["passive"]["rows"] == 280
