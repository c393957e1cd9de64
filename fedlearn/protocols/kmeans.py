"""k-means over vertically divided columns: the active side learns each row's cluster, and nobody sees the other's rows.

Both sides have standardised columns and aligned rows (:mod:`fedlearn.protocols.align`); there is no label. The *active*
side drives and knows which row is in which cluster; the *passive* side never does. Lloyd's two steps become:

    active                                                passive
      1.                                            ◄──   KmeansColumns  bounds of its standardised columns, shuffled
      2. encrypted product over the columns         ◄─►   (matvec: hint or key; transfer: set-up)
         starts from clusters of its own columns
      for each step:
      3. one vector of zeros and ones per cluster   ◄─►   sums of each column over the cluster's rows
      4. KmeansCentres  means, rounded              ──►   its part of each row's distance to each centre
      5.                                            ◄──   KmeansReach    how far such parts differ, for each pair
      6. for cluster c = 1, 2, ...: of every row, is c nearer than w, the nearest of the clusters before?
         its own part of the answer, as a level     ──►   (transfer) one bit for each w < c and each level;
         takes the bit of its own w and level       ◄──   other w are taken blank
      at the end:
      7. KmeansResult                               ──►
         both: KmeansSaved once written             ◄─►

Step 6 compares two numbers in one oblivious transfer. Let a and b be the sides' parts of squared distances. Cluster c
is nearer than w if b_c - b_w < a_w - a_c. The passive side knows the left side of every row, so it can say for each of
255 levels whether the left side is below it; the active side takes the answer at the level next to the right side.
Levels divide the range of step 5 evenly, so a row whose two distances differ by less than one 255th of it may go either
way.

The active side learns the passive columns' means in every cluster at every step (and these sums for each digit, see
products); the range of step 5; and of each row, at each step, k - 1 comparisons. The passive side learns the means of
its own columns over clusters that it cannot see. Small differences of two sums would be sums over few rows, so the
active side asks for a cluster's sums only if at least ``least_rows`` rows differ from each set of rows that it asked
about before for this cluster; else the centre stays. When no centre may move, the clusters are final.

New rows get their clusters by steps 5 and 6 alone: step 5 once for the whole batch, step 6 for one piece of it after
another (ScoreFrom of :mod:`fedlearn.protocols.score` says from which), then KmeansDone.

Lloyd, "Least squares quantization in PCM" (IEEE Trans. Inf. Theory 1982). The comparison by a table of all levels is
the classical reduction of comparison to 1-of-N transfer, see Kolesnikov & Kumaresan (CRYPTO 2013), section 1.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.channel import BOTH, START, Channel, Message, Reveals, Table, nothing
from fedlearn.contract import Contract, Kmeans
from fedlearn.crypto.draws import Draws
from fedlearn.errors import BeyondContract, Malformed, NoOverlap, WrongLength
from fedlearn.protocols import matvec, products, transfer
from fedlearn.protocols.regression import check_names, told_names
from fedlearn.v1 import kmeans_pb2 as pb
from fedlearn.v1 import matvec_pb2

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

TABLE = Table(
    "kmeans",
    ("active", "passive"),
    (
        Message(
            pb.KmeansColumns,
            "passive",
            (START,),
            Reveals(
                "for each opaque column its largest standardised value, rounded up; and names if agreed",
                lambda m: len(m.largest),
            ),
        ),
        Message(
            pb.KmeansCentres,
            "active",
            ("KmeansColumns", "KmeansReach"),
            Reveals("the means of its own columns in every cluster, whose rows it cannot see", lambda m: len(m.values)),
        ),
        Message(
            pb.KmeansReach,
            "passive",
            (START, "KmeansCentres"),
            Reveals(
                "for each pair of clusters the largest difference of its parts of distances, rounded up",
                lambda m: len(m.values),
            ),
        ),
        Message(pb.KmeansResult, "active", ("KmeansReach",), Reveals("how many steps it took, whether it converged")),
        Message(pb.KmeansDone, "active", ("KmeansReach",), nothing("an acknowledgement")),
        Message(pb.KmeansSaved, BOTH, ("KmeansResult", "KmeansSaved"), nothing("an acknowledgement")),
    ),
)

#: Units of a centre: a 1,024th of a standard deviation.
UNIT = 2.0**-10


@dataclass(frozen=True)
class ActiveData:
    """What the active side clusters.

    Attributes:
        columns: float64 (p_A, m), standardised, of its own rows in its own order.
        start: int64 (m,), cluster of each row to start from.
        position: int64 (m,), place of each row in the shared order.
        universe: n, length of the shared order.
    """

    columns: F64
    start: I64
    position: I64
    universe: int


@dataclass(frozen=True)
class PassiveData:
    """The passive side's standardised columns, float64 (p_P, n), in the shared order; and their names."""

    columns: F64
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActiveResult:
    """What the active side gets.

    Attributes:
        cluster: int64 (m,), of its own rows.
        own: float64 (k, p_A), centres in its own standardised columns.
        theirs: int32 (k, p_P), centres in the opaque columns, in :data:`UNIT`.
        first: int32 (k, p_P), the opaque columns' means in the clusters that it started from.
        moved: rows that changed their cluster at each step.
        converged: whether no centre may move any more.
        names: of the opaque columns, if disclosed.
        model_id: 16 bytes that both shares carry.
    """

    cluster: I64
    own: F64
    theirs: I32
    first: I32
    moved: list[int]
    converged: bool
    names: tuple[str, ...]
    model_id: bytes


@dataclass(frozen=True)
class PassiveResult:
    """Centres int32 (k, p_P) of the passive side's columns in their own order, in :data:`UNIT`; how it went."""

    centres: I32
    steps: int
    converged: bool
    model_id: bytes


# --- what both sides compute from the contract and the sizes -----------------------------------------


def settings_of(contract: Contract) -> Kmeans:
    """The contract's ``[kmeans]``, which it has."""
    if contract.kmeans is None:
        raise ValueError("the contract has no [kmeans]")
    return contract.kmeans


def least_rows(contract: Contract) -> int:
    """Least number of rows in a sum that is asked for, and in the difference of two."""
    return max(settings_of(contract).least_rows, contract.budget.least_rows)


def most_vectors(contract: Contract) -> int:
    """How many encrypted vectors a session may need: one a cluster and step."""
    kmeans = settings_of(contract)
    return kmeans.clusters * kmeans.max_steps


def most_transfers(contract: Contract, rows: int, steps: int) -> int:
    """How many rows may choose in so many steps: every row once for each pair of clusters."""
    clusters = settings_of(contract).clusters
    return steps * rows * (clusters * (clusters - 1) // 2)


def layout(contract: Contract, passive_columns: int, universe: int) -> products.Layout:
    """Layout of the passive columns. Raises OverBudget: more vectors or more leakage than the contract allows."""
    terms = matvec.Terms.of(contract, largest_value=1, vectors=most_vectors(contract))
    return products.Layout.choose(terms, passive_columns, universe, settings_of(contract).digits, flags=True)


def _pairs(clusters: int) -> Iterator[tuple[int, int]]:
    """Pairs (w, c) in the order in which they are compared."""
    for c in range(1, clusters):
        for w in range(c):
            yield w, c


def _model_id(channel: Channel, contract: Contract) -> bytes:
    return hashlib.sha256(b"fedlearn/1 kmeans model" + channel.session + contract.hash()).digest()[:16]


# --- active ------------------------------------------------------------------------------------------


def fit_active(channel: Channel, contract: Contract, data: ActiveData) -> ActiveResult:
    """Find clusters as the side that learns them.

    Raises:
        NoOverlap: a cluster to start from has fewer rows than the contract's floor; before anything is sent.
        OverBudget: before any row's value leaves either side.
        PeerMisbehaved: see the subclasses.
    """
    kmeans, least = settings_of(contract), least_rows(contract)
    _check_start(data.start, kmeans.clusters, least)
    channel.open(TABLE, "active")
    with channel.phase("hint"):
        told = channel.receive(pb.KmeansColumns)
        largest = _largest(channel, contract, told)
        theirs = check_names(channel, contract, list(told.names), len(largest), woe=False)
        agreed = layout(contract, len(largest), data.universe)
        querier = products.Querier.open(channel, agreed, largest, data.position)
        receiver = transfer.open_receiver(channel, most_transfers(contract, data.universe, kmeans.max_steps))
    columns = data.columns
    centres = _Centres.empty(kmeans.clusters, len(columns), len(largest))
    cluster, first = data.start, np.empty(0, np.int32)
    moved: list[int] = []
    with channel.phase("steps"):
        due = centres.due(cluster, least)
        while due and len(moved) < kmeans.max_steps:
            centres.move(due, cluster, columns, _sums(querier, cluster, due, kmeans.clusters))
            first = centres.theirs.copy() if not moved else first
            channel.send(pb.KmeansCentres(values=centres.theirs.reshape(-1).tolist()))
            before, reach = cluster, _reach(channel, kmeans.clusters)
            parts = np.stack([((columns - centre[:, None]) ** 2).sum(axis=0) for centre in centres.own])
            cluster = _nearest(kmeans, parts, centres.theirs, reach, data.position, data.universe, receiver)
            moved.append(int((cluster != before).sum()))
            channel.progress(len(moved), kmeans.max_steps, "steps at most")
            due = centres.due(cluster, least)
    model_id = _model_id(channel, contract)
    channel.send(pb.KmeansResult(model_id=model_id, steps=len(moved), converged=not due))
    return ActiveResult(cluster, centres.own, centres.theirs, first, moved, not due, theirs, model_id)


def assign_active(channel: Channel, contract: Contract, theirs: I32, universe: int) -> Callable[[F64, I64, int], I64]:
    """Begin to find the clusters of new rows; :func:`assigned` ends it.

    Args:
        channel: after handshake and alignment.
        contract: as the peer has it.
        theirs: centres as in :class:`ActiveResult`.
        universe: n, rows of the whole shared order.

    Returns:
        what finds the clusters int64 (m,) of a piece: given are this side's parts of the squared distances float64
        (k, m), the rows' places in the piece int64 (m,), and the piece's length.
    """
    channel.open(TABLE, "active")
    settings = settings_of(contract)
    receiver = transfer.open_receiver(channel, most_transfers(contract, universe, 1))
    reach = _reach(channel, settings.clusters)
    return lambda parts, place, length: _nearest(settings, parts, theirs, reach, place, length, receiver)


def assigned(channel: Channel) -> None:
    """The active side has the clusters of all pieces."""
    channel.send(pb.KmeansDone())


def _check_start(start: I64, clusters: int, least: int) -> None:
    rows = np.bincount(start, minlength=clusters)
    small = int(rows.argmin())
    if rows[small] < least:
        raise NoOverlap(
            f"cluster {small + 1} of {clusters} to start from has {rows[small]} of the {len(start)} aligned rows, "
            f"under the {least} of [kmeans] least_rows and [budget] least_rows: agree fewer clusters"
        )


def _largest(channel: Channel, contract: Contract, told: pb.KmeansColumns) -> F64:
    """Bounds of the opaque columns, checked."""
    largest = np.array(told.largest, np.float64)
    most = sum(1 if kind == "number" else settings_of(contract).bins - 1 for kind in contract.passive.features.values())
    if not 1 <= len(largest) <= most:
        raise channel.misbehaved(BeyondContract, f"announced {len(largest)} columns, the contract allows {most}")
    products.check_largest(channel, largest)
    return largest


@dataclass
class _Centres:
    """Centres while they move, float64 (k, p_A) and int32 (k, p_P); and the rows that were asked about before."""

    own: F64
    theirs: I32
    asked: list[list[Flags]] = field(default_factory=list)

    @classmethod
    def empty(cls, clusters: int, own: int, theirs: int) -> _Centres:
        return cls(np.zeros((clusters, own)), np.zeros((clusters, theirs), np.int32), [[] for _ in range(clusters)])

    def due(self, cluster: I64, least: int) -> list[int]:
        """The clusters whose sums may be asked for: enough rows, and enough of them other than ever before."""
        found = []
        for c, before in enumerate(self.asked):
            rows = cluster == c
            if rows.sum() >= least and all((rows ^ other).sum() >= least for other in before):
                found.append(c)
        return found

    def move(self, due: list[int], cluster: I64, columns: F64, sums: F64) -> None:
        for c in due:
            rows = cluster == c
            self.own[c] = columns[:, rows].mean(axis=1)
            self.theirs[c] = np.rint(sums[c] / rows.sum() / UNIT).astype(np.int32)
            self.asked[c].append(rows)


def _sums(querier: products.Querier, cluster: I64, due: list[int], clusters: int) -> F64:
    """Sums of the opaque columns over the clusters that are due, float64 (k, p_P); over no row for the others."""

    def rows(c: int) -> F64:
        return (cluster == c).astype(np.float64) if c in due else np.zeros(len(cluster))

    return querier.ask([], rows, clusters)


def _nearest(
    kmeans: Kmeans, parts: F64, theirs: I32, reach: F64, position: I64, universe: int, receiver: transfer.Receiver
) -> I64:
    """Step 6: the nearest centre of each own row, int64 (m,); parts float64 (k, m)."""
    middle = _middles(theirs)
    nearest, every = np.zeros(parts.shape[1], np.int64), np.arange(parts.shape[1])
    for c in range(1, len(parts)):
        wanted = parts[nearest, every] - parts[c] - middle[nearest, c]
        share = wanted / reach[nearest, c]
        level = np.clip(np.rint((share + 1) / 2 * (kmeans.levels + 1)) - 1, 0, kmeans.levels - 1).astype(np.uint8)
        calls = []
        for w in range(c):
            choices = np.full(universe, kmeans.levels, np.uint8)
            choices[position[nearest == w]] = level[nearest == w]
            calls.append((choices, kmeans.levels))
        bits = receiver.choose_all(calls, blank=True)
        told = np.bitwise_or.reduce([np.unpackbits(b, bitorder="little")[position] for b in bits])
        nearer = np.where(np.abs(share) < 1, told == 1, share > 0)
        nearest = np.where(nearer, c, nearest)
    return nearest


def _reach(channel: Channel, clusters: int) -> F64:
    """The ranges of step 5, checked: float64 (k, k), 0 but at pairs."""
    told = np.array(channel.receive(pb.KmeansReach).values, np.float64)
    due = clusters * (clusters - 1) // 2
    if len(told) != due or not np.all((told > 0) & (told < 1e12)):
        raise channel.misbehaved(WrongLength, f"sent {len(told)} ranges where {due} finite positive ones were due")
    reach = np.zeros((clusters, clusters))
    for (w, c), value in zip(_pairs(clusters), told, strict=True):
        reach[w, c] = value
    return reach


def _middles(theirs: I32) -> F64:
    """|C_c|² - |C_w|² of the passive parts of all centres, float64 (k, k): what both sides know of b_c - b_w."""
    squares = ((theirs * UNIT) ** 2).sum(axis=1)
    return np.asarray(squares[None, :] - squares[:, None])


# --- passive -----------------------------------------------------------------------------------------


def fit_passive(channel: Channel, contract: Contract, data: PassiveData) -> PassiveResult:
    """Serve as the side that has columns only.

    Raises:
        OverBudget: before any row's value leaves either side.
        PeerMisbehaved: see the subclasses.
    """
    kmeans = settings_of(contract)
    channel.open(TABLE, "passive")
    order = Draws().permutation(len(data.columns))
    columns = np.ascontiguousarray(data.columns[order])
    largest = products.largest_of(columns)
    with channel.phase("hint"):
        agreed = layout(contract, *columns.shape)
        names = told_names(contract, tuple(data.names[j] for j in order) if data.names else ())
        channel.send(pb.KmeansColumns(largest=largest.tolist(), names=names))
        ones = np.ones(columns.shape[1])
        holder = products.open_holder(channel, agreed, lambda j: (columns[j], ones), largest)
        sender = transfer.open_sender(channel, most_transfers(contract, columns.shape[1], kmeans.max_steps))
    centres, steps = np.zeros((kmeans.clusters, len(columns)), np.int32), 0
    with channel.phase("steps"):
        while True:
            message = channel.receive(matvec_pb2.MatvecQuery, pb.KmeansResult)
            if isinstance(message, pb.KmeansResult):
                break
            steps += 1
            if steps > kmeans.max_steps:
                raise channel.misbehaved(
                    BeyondContract, f"began step {steps} where the contract has {kmeans.max_steps}"
                )
            matvec.serve(channel, holder, kmeans.clusters, message)  # one vector a cluster
            centres = _told_centres(channel, kmeans.clusters, largest)
            scores = (centres * UNIT) @ columns
            _compare(kmeans, scores, _tell_reach(channel, scores), sender)
            channel.progress(steps, kmeans.max_steps, "steps at most")
    if message.steps != steps or not hmac.compare_digest(message.model_id, _model_id(channel, contract)):
        raise channel.misbehaved(Malformed, "named another model than this session's, or other steps than it took")
    natural = np.empty_like(centres)
    natural[:, order] = centres
    return PassiveResult(natural, steps, message.converged, bytes(message.model_id))


def assign_passive(channel: Channel, contract: Contract, scores: F64) -> Callable[[F64], None]:
    """Begin to serve the clusters of new rows; :func:`end_assigning` ends it.

    Args:
        channel, contract: as for :func:`assign_active`.
        scores: float64 (k, n), of every row of the shared order, in any order, the product of its standardised columns
            with each centre.

    Returns:
        what serves a piece: its rows' scores float64 (k, m), in the shared order.
    """
    channel.open(TABLE, "passive")
    sender = transfer.open_sender(channel, most_transfers(contract, scores.shape[1], 1))
    reach = _tell_reach(channel, scores)
    return lambda part: _compare(settings_of(contract), part, reach, sender)


def end_assigning(channel: Channel) -> None:
    """Wait until the active side has all clusters."""
    channel.receive(pb.KmeansDone)


def exchange_saved(channel: Channel) -> None:
    """Both roles: say that this side's share is written, and wait for the other's word."""
    channel.send(pb.KmeansSaved())
    channel.receive(pb.KmeansSaved)


def _told_centres(channel: Channel, clusters: int, largest: F64) -> I32:
    """Centres int32 (k, p_P): none can lie farther out than the rows whose mean it is."""
    values = np.array(channel.receive(pb.KmeansCentres).values, np.int64)
    if len(values) != clusters * len(largest):
        raise channel.misbehaved(
            WrongLength, f"sent {len(values)} values of centres where {clusters * len(largest)} were due"
        )
    centres = values.reshape(clusters, -1)
    if np.any(np.abs(centres) * UNIT > 1.01 * largest + UNIT):
        raise channel.misbehaved(Malformed, "sent centres that lie farther out than any row")
    return centres.astype(np.int32)


def _tell_reach(channel: Channel, scores: F64) -> F64:
    """Step 5: for each pair of clusters, how far the parts of any two rows differ; float64 (k(k-1)/2,)."""
    reach = products.rounded_up(
        np.array([2 * np.abs(scores[c] - scores[w]).max(initial=0.0) for w, c in _pairs(len(scores))])
    )
    channel.send(pb.KmeansReach(values=reach.tolist()))
    return reach


def _compare(kmeans: Kmeans, scores: F64, reach: F64, sender: transfer.Sender) -> None:
    """Step 6: for every pair of clusters and every level, whether each row's part is below the level."""
    rows, levels = scores.shape[1], kmeans.levels
    for (w, c), most in zip(_pairs(len(scores)), reach, strict=True):
        share = 2 * (scores[w] - scores[c]) / most
        least = np.floor((share + 1) / 2 * (levels + 1)).astype(np.int16)
        bits = np.empty((levels, -(-rows // 8)), np.uint8)
        for level in range(levels):
            bits[level] = np.packbits(least <= level, bitorder="little")
        sender.serve(bits, rows, blank=True)
