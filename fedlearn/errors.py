"""The error tree: every way a run can end badly, with its exit code and how to resolve it.

Four branches, and it matters which one you are on:

* :class:`OwnMistake`: something in this party's own files, data or command. The peer did nothing wrong.
* :class:`Refused`: the run was understood and declined (budget, contract, existing output).
* :class:`PeerTrouble`: the peer is absent, gone, silent, or set up differently. Nobody need be hostile.
* :class:`PeerMisbehaved`: the peer sent something no honest implementation sends. The session is over.

Each class has a distinct ``exit_code`` (the table in ``docs/errors.md`` is generated from this file and
checked by a test) and a ``resolve`` line. A message is one sentence: what, where; the CLI appends how to
resolve it. Messages never contain a row's values other than on the side that owns them, and the text of an
error is never sent to the peer: the peer is told the exit code and the step, nothing else.
"""

from __future__ import annotations


class FedlearnError(Exception):
    """Root of the tree. ``str(error)`` is one sentence: what happened and where."""

    exit_code: int = 1
    resolve: str = "Report this with the log of both parties."


# --- my mistake ------------------------------------------------------------------------------------


class OwnMistake(FedlearnError):
    """Something in this party's own configuration, data or command line."""

    exit_code = 10
    resolve = "Correct the named file, field or option and run again."


class BadConfig(OwnMistake):
    """A TOML file that does not parse, or a field with a value out of range."""

    exit_code = 11
    resolve = "Correct the field; `fedlearn contract schema` and `fedlearn party schema` list what is allowed."


class UnknownKey(OwnMistake):
    """A TOML key that the schema does not know; unknown keys are never ignored."""

    exit_code = 12
    resolve = "Remove the key or correct its spelling."


class FileMissing(OwnMistake):
    """A file that the configuration names does not exist or cannot be read."""

    exit_code = 13
    resolve = "Correct the path or create the file."


class ColumnMissing(OwnMistake):
    """A column that the contract names is not in the table."""

    exit_code = 20
    resolve = "Add the column to the table, or agree a contract without it."


class EmptyTable(OwnMistake):
    """A table without rows."""

    exit_code = 21
    resolve = "Point [data] path at a table with rows."


class DuplicateIds(OwnMistake):
    """An identifier that occurs in more than one row after normalisation."""

    exit_code = 22
    resolve = 'Keep one row per identifier, or agree duplicates = "first" in the contract.'


class NullIds(OwnMistake):
    """Rows without an identifier."""

    exit_code = 23
    resolve = 'Drop the rows without identifier, or agree nulls = "drop" in the contract.'


class BadLabel(OwnMistake):
    """A label column that is not binary, has missing values, or takes one value only."""

    exit_code = 24
    resolve = "Give each row one of two label values, and check the contract's positive value."


class NotNumeric(OwnMistake):
    """Text in a column that the contract declares numeric."""

    exit_code = 25
    resolve = "Clean the cell, list its text under [data] missing, or declare the column a category."


class NotFinite(OwnMistake):
    """An infinite value in a numeric column."""

    exit_code = 26
    resolve = "Replace infinite values by a number or leave the cell empty (missing)."


class TooManyCategories(OwnMistake):
    """A category column with more distinct values than the contract has bins."""

    exit_code = 27
    resolve = "Group rare categories, or agree a larger number of bins in the contract."


class NoOverlap(OwnMistake):
    """Not one identifier is shared, or too few to train on."""

    exit_code = 28
    resolve = "Check on both sides that the key column holds the same kind of identifier in the same format."


class AmbiguousIds(OwnMistake):
    """By two key columns, a row belongs to two rows of the other side."""

    exit_code = 29
    resolve = "Find the rows whose keys belong to different people, on both sides, or align by one key."


class BadAudit(OwnMistake):
    """An audit log that was changed after it was written, or that does not agree with the other side's."""

    exit_code = 38
    resolve = "Compare with a copy of the log, and find out who could write to it."


class BadIds(OwnMistake):
    """A key column holds a value that is no such identifier: a wrong check digit, an impossible phone number."""

    exit_code = 37
    resolve = 'Correct these rows, or agree `invalid = "drop"` for the key in the contract.'


class NotPrepared(OwnMistake):
    """The table that this side prepared for alignment is missing, of other rows, spent, or damaged."""

    exit_code = 39
    resolve = "Run `prepare` on this side; if its files are damaged, remove them first."


class BadCertificate(OwnMistake):
    """This party's own certificate or key is expired, untrusted, mismatched or for another name."""

    exit_code = 30
    resolve = "Issue a new certificate with `fedlearn keys`, and check the [tls] paths."


class WrongModel(OwnMistake):
    """A saved model or alignment that is damaged, was changed, or belongs to another contract or another party."""

    exit_code = 31
    resolve = "Point at this party's own share of a model trained under this contract, or align again."


class CannotWrite(OwnMistake):
    """The disk is full, or a file cannot be written or read any more."""

    exit_code = 32
    resolve = "Make room, or choose another output folder, and run again."


class WrongCheckpoint(OwnMistake):
    """No checkpoint to resume from, or one that is damaged or of another run, table, contract or release."""

    exit_code = 33
    resolve = "Bring back what changed and resume, or remove the checkpoint on both sides and train without --resume."


class Collinear(OwnMistake):
    """Columns of a regression that repeat each other, so that its curvature is singular."""

    exit_code = 34
    resolve = "Leave out one of the columns, or agree an l2 penalty in [glm]."


class Separation(OwnMistake):
    """A column or a combination of columns predicts the label perfectly, so that a coefficient has no finite value."""

    exit_code = 35
    resolve = "Merge the bins concerned, leave the column out, or agree an l2 penalty in [glm]."


class ConstantColumns(OwnMistake):
    """A side of a regression without a single column that varies over the aligned rows."""

    exit_code = 36
    resolve = "Bring at least one column that varies."


# --- understood and declined -----------------------------------------------------------------------


class Refused(FedlearnError):
    """The run was understood and declined before anything was lost or revealed."""

    exit_code = 40
    resolve = "Change the contract, or the request, so that it is allowed."


class OverBudget(Refused):
    """The plan does not fit the contract's budget of leakage, queries, rows, or the scheme's plaintext space."""

    exit_code = 41
    resolve = "Agree fewer trees or levels, fewer gradient_bits, or a larger budget in the contract."


class OutputExists(Refused):
    """The output folder already holds a result; nothing is ever overwritten."""

    exit_code = 42
    resolve = "Choose another output folder, or move the earlier result away."


class ContractExpired(Refused):
    """The contract's expiry date has passed."""

    exit_code = 43
    resolve = "Agree a new contract with a later `expires`."


class NotInContract(Refused):
    """A job that the contract does not allow, such as training on a cardinality-only alignment."""

    exit_code = 44
    resolve = "Agree a contract that allows this job."


class CannotPlace(Refused):
    """Cuckoo hashing found no place for an identifier, which happens once in 2^40 alignments."""

    exit_code = 45
    resolve = "Run again: the next session draws other places."


class NotDisclosed(Refused):
    """An export that needs the passive splits in plain terms, of a model that was trained without disclosing them."""

    exit_code = 49
    resolve = "Export with --format view or text, or agree [disclosure] model = true in a contract and train under it."


# --- the peer, without malice ----------------------------------------------------------------------


class PeerTrouble(FedlearnError):
    """The peer could not be reached, went away, or is set up differently."""

    exit_code = 50
    resolve = "Look at the peer's own error message; it has the cause."


class PeerAbsent(PeerTrouble):
    """Nobody answered at the address, or nobody connected, within the time allowed."""

    exit_code = 51
    resolve = "Start the other party, and check the address, the port and the firewall."


class PeerLost(PeerTrouble):
    """The connection broke in the middle of a session: the peer was killed or the network failed."""

    exit_code = 52
    resolve = "See why the peer stopped, then start both again; `train --resume` if training had saved a round."


class PeerSilent(PeerTrouble):
    """The peer is connected but has sent neither message nor heartbeat for too long, or a step took too long."""

    exit_code = 53
    resolve = "See whether the peer hangs; raise [network] silence_seconds or step_seconds if it is merely slow."


class PeerAborted(PeerTrouble):
    """The peer ended the session and said so."""

    exit_code = 54
    resolve = "Look at the peer's own error message; it has the cause."


class PeerUntrusted(PeerTrouble):
    """The peer's certificate is expired, self-signed, from another authority, or for another name."""

    exit_code = 55
    resolve = "Ask the peer for a valid certificate from the agreed authority, and check [peer] name."


class ContractMismatch(PeerTrouble):
    """The two sides hold different contracts."""

    exit_code = 56
    resolve = "Compare `fedlearn contract hash` on both sides and use the same file."


class VersionMismatch(PeerTrouble):
    """The peer speaks another version of the protocol."""

    exit_code = 57
    resolve = "Install the same fedlearn release on both sides."


class JobMismatch(PeerTrouble):
    """The peer runs another command, plays the same role, or holds the other share of another model."""

    exit_code = 58
    resolve = "Run the same command on both sides, with shares of the same model."


# --- the peer, out of line -------------------------------------------------------------------------


class PeerMisbehaved(FedlearnError):
    """The peer sent what no honest implementation sends; the session ends at once."""

    exit_code = 60
    resolve = "Do not retry before the peer's operator has explained this; keep the log of both parties."


class Malformed(PeerMisbehaved):
    """Bytes that are not a message of the protocol, or a field out of its range."""

    exit_code = 61


class OutOfOrder(PeerMisbehaved):
    """A message of the protocol at a step where the message table does not allow it."""

    exit_code = 62


class Replayed(PeerMisbehaved):
    """A frame with a sequence number already used or skipped, or from another session."""

    exit_code = 63


class WrongLength(PeerMisbehaved):
    """An array whose length or shape differs from what both sides agreed."""

    exit_code = 64


class InvalidPoint(PeerMisbehaved):
    """An element that is not a point of the group, or is its identity."""

    exit_code = 65


class BeyondContract(PeerMisbehaved):
    """More rows, queries or bytes than the contract allows."""

    exit_code = 66


class LedgerMismatch(PeerMisbehaved):
    """The two sides recorded different ledgers for the same session."""

    exit_code = 67


class Interrupted(FedlearnError):
    """The operator pressed Ctrl-C or sent SIGTERM."""

    exit_code = 130
    resolve = (
        "Nothing half-written was kept; start both again when ready; `train --resume` if training had saved a round."
    )


def all_errors() -> list[type[FedlearnError]]:
    """Every class of the tree, parents before children, in the order of this file."""
    found: list[type[FedlearnError]] = [FedlearnError]
    for error in found:
        found.extend(error.__subclasses__())
    return sorted(set(found), key=lambda e: e.exit_code)
