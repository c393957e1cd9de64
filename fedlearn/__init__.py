"""fedlearn: two companies that may not pool their data train one model.

Start reading at :mod:`fedlearn.protocols`; to try it on one table, use :class:`VerticalBoostingClassifier`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlearn.estimator import VerticalBoostingClassifier as VerticalBoostingClassifier

__version__ = "0.1.0"

#: Version of the wire protocol; both sides must speak the same one.
PROTOCOL_VERSION = 2


def __getattr__(name: str) -> Any:
    # On first use only: importing fedlearn should not import scikit-learn.
    if name == "VerticalBoostingClassifier":
        from fedlearn.estimator import VerticalBoostingClassifier

        return VerticalBoostingClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
