"""Drafts of a contract and of both party files, as commented TOML that people read, change and sign.

A draft is made from what its author knows: the own table's header, and what the peer told of its columns. Nothing is
guessed about values but the kind of a column and which label value is the rarer; both stand in the files to be checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from fedlearn.contract import Kind, load_contract, load_party
from fedlearn.data.outline import Outline
from fedlearn.errors import BadLabel, ColumnMissing
from fedlearn.models.share import staged

Algorithm = Literal["trees", "regression", "scorecard"]
_MOST_CLASSES = 20
_DEPTH, _TREES, _FOLDS = 3, 100, 5  # as in the demo


@dataclass(frozen=True)
class Party:
    """One side of a draft: its name, its features by kind, and where its table is (None: not on this machine)."""

    name: str
    features: Mapping[str, Kind]
    table: Path | None = None


@dataclass(frozen=True)
class Target:
    """The label: its column, and either its two values' positive one, its classes, or neither for a number."""

    column: str
    positive: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """Everything that the files say which is not a default. ``listener`` is a party's name, ``address`` host:port."""

    name: str
    purpose: str
    expires: date
    active: Party
    passive: Party
    target: Target
    key: str
    normalise: str
    mode: Literal["mutual", "one-sided"]
    algorithm: Algorithm
    listener: str
    address: str


def features_of(found: Outline, *others: str) -> tuple[dict[str, Kind], list[str]]:
    """The usable features of a table without ``others`` (key, label), and the columns left out.

    Raises:
        ColumnMissing: one of ``others`` is not in it.
    """
    for name in others:
        if name not in found.kinds:
            raise ColumnMissing(f"column {name!r} is not in {found.path}, which has: {', '.join(found.kinds)}")
    usable = {name: kind for name, kind in found.kinds.items() if kind is not None and name not in others}
    return usable, [name for name in found.kinds if name not in usable and name not in others]


def target_of(found: Outline, column: str, positive: str | None = None) -> Target:
    """What kind of label a column holds; of two values the rarer is taken for positive unless one is given.

    Raises:
        BadLabel: it has one value, or too many texts to be classes.
    """
    values = found.values(column)
    if len(values) < 2:
        raise BadLabel(f"column {column!r} of {found.path} has only one value, so there is nothing to learn")
    if len(values) == 2:
        if positive is not None and positive not in values:
            raise BadLabel(f"column {column!r} of {found.path} has values {' and '.join(values)}, none is {positive!r}")
        return Target(column, positive or min(values, key=lambda text: values[text]))
    if positive is not None:
        raise BadLabel(f"column {column!r} of {found.path} has more than two values, so none of them is the positive")
    if found.kinds[column] == "number":
        return Target(column)
    if len(values) > _MOST_CLASSES:
        raise BadLabel(
            f"column {column!r} of {found.path} has more than {_MOST_CLASSES} texts: neither number nor class"
        )
    return Target(column, classes=tuple(sorted(values)))


def normalisation_of(key: str) -> str:
    """How a key column of that name is usually normalised."""
    guesses = {"phone|mobile|msisdn|tel": "digits", "mail": "email", "uuid": "uuid"}
    return next((how for words, how in guesses.items() if re.search(words, key, re.IGNORECASE)), "text")


def write(draft: Draft, folder: Path) -> dict[str, Path]:
    """Write ``contract.toml`` and both party files into a new folder, read them back, and say where they are.

    Raises:
        OutputExists: there is something at ``folder``.
        BadConfig: what the draft says is no valid contract.
    """
    parties = {party.name: party for party in (draft.active, draft.passive)}
    with staged(folder) as place:
        (place / "contract.toml").write_text(contract_text(draft), encoding="utf-8")
        load_contract(place / "contract.toml")
        for name, party in parties.items():
            (place / f"{name}.toml").write_text(party_text(draft, party, folder), encoding="utf-8")
            load_party(place / f"{name}.toml")
    return {"contract": folder / "contract.toml"} | {name: folder / f"{name}.toml" for name in parties}


# --- the texts ---------------------------------------------------------------------------------------


def contract_text(draft: Draft) -> str:
    """The contract as TOML."""
    return f"""\
# What {draft.active.name} and {draft.passive.name} agree to. Both hold this file.
# `fedlearn contract hash` must print the same on both sides; `fedlearn contract schema` lists every field.
name = {_text(draft.name)}
purpose = {_text(draft.purpose)} # why these data may be used; both sides' logs begin with it
expires = {draft.expires.isoformat()} # no session starts after this day

[active] # the side with the labels: it drives, and gets the scores
name = {_text(draft.active.name)}
[active.features] # "number" or "category"; take out what must not be used
{_features(draft.active)}
[passive] # the side with features only
name = {_text(draft.passive.name)}
[passive.features]
{_features(draft.passive)}
[label] # a column of {draft.active.name}
{_label(draft.target)}
[align]
mode = {_text(draft.mode)} # {_MODES[draft.mode]}
[align.key] # in both tables
column = {_text(draft.key)}
normalise = {_text(draft.normalise)} # digits, text, exact, phone, national-id, email, uuid or integer
duplicates = "error" # or "first"
nulls = "error" # or "drop"

{_algorithm(draft)}
[encryption]
backend = "lwe" # or "paillier": the conservative choice for small tables, and far slower

[budget] # what {draft.passive.name} allows in one session; it refuses what goes beyond
rows = 10_000_000
least_rows = 10 # no split may leave fewer training rows on a side
vectors = {_vectors(draft):_} # encrypted vectors
kl_nats = 1e-6 # leakage of the noise of all encrypted answers together

[disclosure] # what {draft.active.name} may be told beyond what the protocols need
names = false # names of {draft.passive.name}'s features
model = false # {draft.passive.name}'s splits in plain terms, for export
"""


def party_text(draft: Draft, party: Party, folder: Path) -> str:
    """A party's own file as TOML; a table's path is written as seen from ``folder``."""
    if party.table is None:
        table, note = f"{party.name}.csv", f" # CSV or Parquet, with {draft.key} and the features of the contract"
    else:
        table, note = os.path.relpath(party.table.absolute(), folder.absolute()), ""
    host, _, port = draft.address.rpartition(":")
    listens = party.name == draft.listener
    network = f'listen = "0.0.0.0:{port}" # {host} as others see it' if listens else f"connect = {_text(draft.address)}"
    return f"""\
# {party.name}'s own settings: nobody else sees this file. Paths are taken from this folder.
# `fedlearn party schema` lists every field.
party = {_text(party.name)}
contract = "contract.toml"

[data]
path = {_text(table)}{note}

[network] # one side listens, the other connects
{network}
connect_seconds = 120 # how long to wait for {draft.passive.name if party is draft.active else draft.active.name}

[tls] # `fedlearn keys request keys --party {party.name}`, signed by an authority that both trust
certificate = {_text(f"keys/{party.name}.pem")}
key = {_text(f"keys/{party.name}.key")}
authority = "keys/authority.pem"

[output]
folder = {_text(f"results-{party.name}")}
"""


_MODES = {
    "mutual": "both learn which customers are shared",
    "one-sided": "the passive side does not learn who is shared, nor how many",
}


def _text(value: str) -> str:
    """A basic string of TOML, whose escapes are JSON's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _text(name)


def _features(party: Party) -> str:
    return "".join(f"{_key(name)} = {_text(kind)}\n" for name, kind in party.features.items())


def _label(target: Target) -> str:
    lines = [f"column = {_text(target.column)}"]
    if target.positive:
        lines.append(f"positive = {_text(target.positive)} # the value whose probability is predicted")
    if target.classes:
        lines.append(f"classes = [{', '.join(map(_text, target.classes))}]")
    return "\n".join(lines) + "\n"


def _algorithm(draft: Draft) -> str:
    target = draft.target
    if draft.algorithm == "trees":
        objective = "softmax" if target.classes else "logistic" if target.positive else "squared"
        return f"""\
[boost]
objective = {_text(objective)}
trees = {_TREES}
depth = {_DEPTH}
learning_rate = 0.1
bins = 32
folds = {_FOLDS} # cross-validation beside the final model; 0 for none
routing = "oblivious" # or "bits": faster, and tells every row's side at every split
seed = 1
"""
    woe = draft.algorithm == "scorecard"
    text = f"""\
[glm]
family = {_text("logistic" if target.positive else "linear")}
woe = {str(woe).lower()} # replace every column by the weight of evidence of its bins
disclosure = "score" # partial scores meet on the active side: exact, with standard errors; "none": sealed
"""
    if woe:
        text += """
[scorecard]
base_score = 600
base_odds = 50 # good to bad, at the base score
pdo = 20 # points that double the odds
"""
    return text


def _vectors(draft: Draft) -> int:
    """Vectors of a run with these settings, rounded up: gradients, hessians and counts of every node that is asked."""
    nodes = (1 << (_DEPTH - 1)) * _TREES
    per_model = 3 * nodes * max(1, len(draft.target.classes))
    return -(-per_model * (1 + _FOLDS) // 10_000) * 10_000
