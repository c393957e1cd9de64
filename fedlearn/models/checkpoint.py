"""A party's own checkpoint of training that is under way: what it needs to go on after a crash of either side.

One folder beside the place of the result::

    head.json      what the run is bound to, its alignment, and the last two rounds with a hash of all they need
    journal.jsonl  what each saved round added: trees (active) or splits (passive), one line a round
    rows.npy       this side's row at each place of the shared order
    M-T.npy        active: margins of model M after T trees

The journal and the margins are written first and are nobody's business until ``head.json`` names them; that one is
replaced in a single step. So whenever the process dies, the head and what it names are whole; should the machine die,
the hashes tell, and the round before may still be whole. Only the head is flushed to disk, as it has the passive side's
count of what was used. Margins are one array for each model and kept round, whatever the number of rounds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn import __version__
from fedlearn.channel import Ledger
from fedlearn.channel.transcript import Entry
from fedlearn.errors import WrongCheckpoint
from fedlearn.kernels.trees import MASK
from fedlearn.learner.booster import Model, Split
from fedlearn.models.forest import Growth
from fedlearn.models.share import replace_file
from fedlearn.protocols.align import Alignment
from fedlearn.protocols.resume import KEPT, Asked, Point, Spent

FORMAT = 1
_HEAD, _JOURNAL, _ROWS = "head.json", "journal.jsonl", "rows.npy"
_NODE = ("feature", "opaque", "left", "value", "gain", "cover", "size")
_ENTRY = {"protocol": str, "message": str, "sender": str, "receiver": str, "reveals": str} | dict.fromkeys(
    ("messages", "bytes", "values"), int
)


@dataclass
class _Journal:
    """The lines of all saved rounds: only ever appended to, or cut back to an earlier round."""

    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def append(self, folder: Path, line: str) -> None:
        raw = line.encode() + b"\n"
        with (folder / _JOURNAL).open("r+b" if self.size else "wb") as file:
            file.seek(self.size)
            file.write(raw)
            file.truncate()
        self.size += len(raw)
        self.digest.update(raw)

    def cut(self, folder: Path, size: int) -> None:
        self.size = size
        self.digest = hashlib.sha256((folder / _JOURNAL).read_bytes()[:size])

    def lines(self, folder: Path) -> list[bytes]:
        return (folder / _JOURNAL).read_bytes()[: self.size].splitlines()


@dataclass
class Checkpoint:
    """One side's checkpoint; both roles' keepers of :mod:`fedlearn.protocols.resume`.

    Attributes:
        folder: where it is; made when the first round is saved.
        binding: what it holds for: contract, table, release, party, role, earlier model.
        run: 16 bytes, the session in which the run began.
        alignment: of the run.
        spent: passive side: what counts as used.
    """

    folder: Path
    binding: dict[str, str]
    run: bytes
    alignment: Alignment
    spent: Spent = field(default_factory=Spent)
    _saved: list[tuple[Point, dict[str, Any]]] = field(default_factory=list)  # the point, and what it needs
    _journal: _Journal = field(default_factory=_Journal)
    _arrays: dict[str, str] = field(default_factory=dict)  # files of margins that are whole, and their SHA-256

    @property
    def points(self) -> Sequence[Point]:
        """What there is to go on from, ascending; none in a new run."""
        return [point for point, _ in self._saved]

    # --- active ----------------------------------------------------------------------------------

    def save_models(self, point: Point, models: list[Model]) -> None:
        """See :class:`fedlearn.protocols.resume.ActiveCheckpoint`."""
        self._begin()
        done = self._progress()
        line = [_grown(model, *done.get(k, (0, 0, 0))) for k, model in enumerate(models)]
        self._append({"round": point.round, "models": line})
        self._keep(point, {"models": [self._state(k, model) for k, model in enumerate(models)]})
        used = {name for _, needs in self._saved for name in _arrays_of(needs)}
        for name in set(self._arrays) - used:
            (self.folder / name).unlink(missing_ok=True)
            del self._arrays[name]

    def restore_models(self, point: Point, splits: list[Split]) -> list[Model]:
        """See :class:`fedlearn.protocols.resume.ActiveCheckpoint`."""
        needs = self._go_back(point)
        lines = [json.loads(line) for line in self._journal.lines(self.folder)]
        if len(needs["models"]) != len(splits):
            raise WrongCheckpoint(f"the checkpoint in {self.folder} is of another number of folds")
        return [self._model(k, split, needs["models"][k], lines) for k, split in enumerate(splits)]

    def _progress(self) -> dict[int, tuple[int, int, int]]:
        """Nodes, trees and metrics of each model at the last saved point."""
        if not self._saved:
            return {}
        return {k: tuple(state["done"]) for k, state in enumerate(self._saved[-1][1]["models"])}

    def _state(self, k: int, model: Model) -> dict[str, Any]:
        state: dict[str, Any] = {
            "done": [len(model.growth.left), len(model.output), len(model.history)],
            "base": model.base.tolist(),
            "stopped": model.stopped,
            "margins": self._write_margins(k, len(model.output), model.margins),
            "best": None,
        }
        if model.best is not None:
            metric, trees, margins = model.best
            state["best"] = {"metric": metric, "trees": trees, "margins": self._write_margins(k, trees, margins)}
        return state

    def _write_margins(self, k: int, trees: int, margins: NDArray[np.float64]) -> list[str]:
        """Name and hash of the file with margins of model k after so many trees, written unless it is there."""
        name = f"{k}-{trees}.npy"
        if name not in self._arrays:
            np.save(self.folder / name, margins, allow_pickle=False)
            self._arrays[name] = _digest(margins)
        return [name, self._arrays[name]]

    def _model(self, k: int, split: Split, state: dict[str, Any], lines: list[dict[str, Any]]) -> Model:
        growth, output, history = Growth(), [], []
        for line in lines:
            grown = line["models"][k]
            for name in (*_NODE, "roots"):
                getattr(growth, name).extend(grown[name])
            growth.masks.extend(
                np.frombuffer(bytes.fromhex(mask).ljust(MASK, b"\0"), np.uint8) for mask in grown["mask"]
            )
            output.extend(grown["output"])
            history.extend(grown["metric"])
        if [len(growth.left), len(output), len(history)] != state["done"]:
            raise WrongCheckpoint(f"the checkpoint in {self.folder} is damaged: its trees do not add up")
        best = state["best"]
        return Model(
            number=k,
            split=split,
            margins=self._read(state["margins"]),
            base=np.array(state["base"], np.float64),
            growth=growth,
            output=output,
            history=history,
            best=best and (best["metric"], best["trees"], self._read(best["margins"])),
            stopped=state["stopped"],
        )

    def _read(self, array: list[str]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.load(self.folder / array[0], allow_pickle=False)
        return found

    # --- passive ---------------------------------------------------------------------------------

    def save_splits(self, point: Point, asked: Asked, spent: Spent) -> None:
        """See :class:`fedlearn.protocols.resume.PassiveCheckpoint`."""
        self._begin()
        known = self._saved[-1][0].splits if self._saved else 0
        self._append({"round": point.round, "splits": [[f, _hex(mask)] for f, mask in asked[known:]]})
        self.spent = spent
        self._keep(point, {})

    def restore_splits(self, point: Point) -> Asked:
        """See :class:`fedlearn.protocols.resume.PassiveCheckpoint`."""
        self._go_back(point)
        asked = [split for line in self._journal.lines(self.folder) for split in json.loads(line)["splits"]]
        if len(asked) != point.splits:
            raise WrongCheckpoint(f"the checkpoint in {self.folder} is damaged: its splits do not add up")
        return [(f, np.frombuffer(bytes.fromhex(mask).ljust(MASK, b"\0"), np.uint8)) for f, mask in asked]

    def spend(self, spent: Spent) -> None:
        """See :class:`fedlearn.protocols.resume.PassiveCheckpoint`."""
        self.spent = spent
        if self._saved:
            self._write_head()

    # --- both ------------------------------------------------------------------------------------

    def remove(self) -> None:
        """The run has ended well, or is not to be resumed: nothing is left to go on from."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._saved.clear()

    def _begin(self) -> None:
        """Make the folder before the first point is saved."""
        if not self._saved:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            np.save(self.folder / _ROWS, self.alignment.rows, allow_pickle=False)

    def _append(self, line: dict[str, Any]) -> None:
        self._journal.append(self.folder, json.dumps(line, separators=(",", ":"), default=_plain))

    def _keep(self, point: Point, needs: dict[str, Any]) -> None:
        needs |= {"journal": [self._journal.size, self._journal.digest.hexdigest()]}
        self._saved = [*self._saved, (point, needs)][-KEPT:]
        self._write_head()

    def _go_back(self, point: Point) -> dict[str, Any]:
        """Forget what came after a point; returns what it needs."""
        self._saved = [(other, needs) for other, needs in self._saved if other.round <= point.round]
        # Files of what is forgotten are no longer right: rounds that are grown again write theirs anew.
        self._arrays = {name: whole for _, needs in self._saved for name, whole in _arrays_of(needs).items()}
        self._journal.cut(self.folder, self._saved[-1][1]["journal"][0])
        return self._saved[-1][1]

    def _write_head(self) -> None:
        head = {
            "format": FORMAT,
            "binding": self.binding,
            "run": self.run.hex(),
            "alignment": {
                "id": self.alignment.id.hex(),
                "mode": self.alignment.mode,
                "size": self.alignment.size,
                "shared": self.alignment.shared,
                "by_key": list(self.alignment.by_key),
                "rows": _digest(self.alignment.rows),
            },
            "spent": vars(self.spent),
            "points": [
                {
                    "round": point.round,
                    "splits": point.splits,
                    "ledger": point.ledger.lines(),
                    "kl_nats": point.ledger.kl_nats,
                    "needs": needs,
                }
                for point, needs in self._saved
            ],
        }
        body = json.dumps(head, sort_keys=True)
        text = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "head": head}, sort_keys=True)
        replace_file(self.folder / _HEAD, text.encode())


def load(folder: Path, binding: dict[str, str]) -> Checkpoint:
    """Read and check this party's checkpoint.

    Args:
        folder: where it is.
        binding: what it must hold for; see :func:`bind`.

    Raises:
        WrongCheckpoint: there is none, it is damaged, or it was made with something else than this side has now.
    """
    try:
        saved = json.loads((folder / _HEAD).read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongCheckpoint(f"there is no checkpoint to resume from in {folder}: {error.strerror}") from None
    except ValueError:
        raise WrongCheckpoint(f"{folder / _HEAD} is damaged: not JSON") from None
    head = saved.get("head") if isinstance(saved, dict) else None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise WrongCheckpoint(f"{folder / _HEAD} is not a checkpoint of this release")
    if hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest() != saved.get("sha256"):
        raise WrongCheckpoint(f"{folder / _HEAD} is damaged: its hash differs")
    for name, now in binding.items():
        if head["binding"].get(name) != now:
            raise WrongCheckpoint(f"the checkpoint in {folder} was made with another {name} than this side has now")
    try:
        checkpoint = _restored(folder, head)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WrongCheckpoint(f"the checkpoint in {folder} is damaged: {error}") from None
    if not checkpoint.points:
        raise WrongCheckpoint(f"the checkpoint in {folder} is damaged: no round of it is whole")
    return checkpoint


def bind(contract_hash: bytes, table: bytes, party: str, role: str, earlier: bytes) -> dict[str, str]:
    """What a checkpoint holds for. With these the bins, folds and disguise are the same again.

    Args:
        contract_hash: of the contract.
        table: this side's :meth:`fedlearn.data.table.PartyTable.fingerprint`.
        party, role: whose it is.
        earlier: the earlier model that training went on from, or empty.
    """
    return {
        "release": __version__,
        "party": party,
        "role": role,
        "contract": contract_hash.hex(),
        "table": table.hex(),
        "earlier model": earlier.hex(),
    }


def exists(folder: Path) -> bool:
    """Whether a round has been saved there."""
    return (folder / _HEAD).exists()


def _restored(folder: Path, head: dict[str, Any]) -> Checkpoint:
    """The checkpoint with those of its points of which every byte is there; raises what a wrong type raises."""
    rows = np.load(folder / _ROWS, allow_pickle=False)
    told = head["alignment"]
    if _digest(rows) != told["rows"]:
        raise ValueError(f"the hash of {_ROWS} differs")
    identity, by_key = bytes.fromhex(told["id"]), tuple(map(int, told["by_key"]))
    alignment = Alignment(identity, told["mode"], told["size"], told["shared"], rows, by_key)
    checkpoint = Checkpoint(folder, head["binding"], bytes.fromhex(head["run"]), alignment, Spent(**head["spent"]))
    journal = (folder / _JOURNAL).read_bytes()
    for saved in head["points"]:
        needs, ledger = saved["needs"], _ledger(saved["ledger"], saved["kl_nats"])
        size, digest = needs["journal"]
        arrays = _arrays_of(needs)
        if hashlib.sha256(journal[:size]).hexdigest() == digest and all(_whole(folder, *one) for one in arrays.items()):
            checkpoint._saved.append((Point(saved["round"], saved["splits"], ledger), needs))
            checkpoint._arrays |= arrays
    return checkpoint


def _ledger(lines: list[dict[str, Any]], kl_nats: float) -> Ledger:
    for line in lines:
        if set(line) != set(_ENTRY) or not all(isinstance(line[name], kind) for name, kind in _ENTRY.items()):
            raise ValueError("a line of its ledger is none")
    return Ledger(
        {(line["protocol"], line["message"], line["sender"]): Entry(**line) for line in lines}, float(kl_nats)
    )


def _arrays_of(needs: dict[str, Any]) -> dict[str, str]:
    """Files of margins that a point needs, and their hashes."""
    states = needs.get("models", ())
    pairs = [state["margins"] for state in states] + [state["best"]["margins"] for state in states if state["best"]]
    return dict(pairs)


def _whole(folder: Path, name: str, digest: str) -> bool:
    try:
        array = np.load(folder / Path(name).name, allow_pickle=False)
    except (OSError, ValueError):
        return False
    return _digest(array) == digest


def _grown(model: Model, nodes: int, trees: int, metrics: int) -> dict[str, Any]:
    """What a model has gained since it had so many nodes, trees and metrics."""
    growth = model.growth
    return {
        **{name: getattr(growth, name)[nodes:] for name in _NODE},
        "mask": [_hex(mask) for mask in growth.masks[nodes:]],
        "roots": growth.roots[trees:],
        "output": model.output[trees:],
        "metric": model.history[metrics:],
    }


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(memoryview(np.ascontiguousarray(array))).hexdigest()  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """What a NumPy number holds."""
    return value.item()


def _hex(mask: NDArray[np.uint8]) -> str:
    """A bin mask without the zeros at its end."""
    return mask.tobytes().rstrip(b"\0").hex()
