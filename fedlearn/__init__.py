"""fedlearn: two companies that may not pool their data train one model.

Start reading at :mod:`fedlearn.protocols`.
"""

__version__ = "0.1.0"

#: Version of the wire protocol; both sides must speak the same one.
PROTOCOL_VERSION = 1
