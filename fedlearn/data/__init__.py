"""One party's own data: a file becomes a checked table, and the table becomes small integers.

Read :mod:`~fedlearn.data.table` first, then :mod:`~fedlearn.data.binning`.

Nothing in here talks to the peer; every value is this party's own, and so is every value in an error message.
"""

from fedlearn.data.binning import Binning, FeatureBins, fit_binning
from fedlearn.data.table import PartyTable, load_table, make_table, normalise

__all__ = ["Binning", "FeatureBins", "PartyTable", "fit_binning", "load_table", "make_table", "normalise"]
