"""Online scoring in plain mode, one applicant at a time; not a session, but a question and an answer.

    active                                              passive
      1. PartRequest   the applicant, a purpose,
         a consent reference                  ──►       looks the applicant up
      2.                                      ◄──       PartReply   its part of the score

The passive side learns who applies, when, for what purpose and under which consent: also of applicants it does not
know. The active side learns whether the passive side knows the applicant, and its part: for trees the side of the
applicant at every passive split of the model (one bit each), for linear models the partial score, and with a scorecard
the contract's codes of the passive columns that cost the applicant most, with the points.
"""

from __future__ import annotations

import math

from fedlearn.channel import START, Message, Reveals, Table
from fedlearn.v1 import serve_pb2 as pb

PROTOCOL = 1  #: version of these messages

TABLE = Table(
    "serve",
    ("active", "passive"),
    (
        Message(
            pb.PartRequest,
            "active",
            (START,),
            Reveals("the identifier of an applicant, the purpose and the consent reference"),
        ),
        Message(
            pb.PartReply,
            "passive",
            ("PartRequest",),
            Reveals(
                "the applicant's side at every passive split, or the partial score and the reasons that cost it most",
                lambda m: max(1, 8 * len(m.sides)) + len(m.reason),
            ),
        ),
    ),
)


def fault(reply: pb.PartReply, sides: int, codes: int) -> str:
    """What is wrong with the passive side's part of an answer; empty when nothing is.

    Args:
        reply: parsed, not yet believed.
        sides: bytes of sides due for the model.
        codes: reason codes that the contract has for the passive side.
    """
    if len(reply.sides) != sides:
        return f"sent {len(reply.sides)} bytes of sides where {sides} were due"
    if len(reply.reason) != len(reply.lost) or len(reply.reason) > codes:
        return "sent reasons that do not fit the contract"
    if any(code >= codes for code in reply.reason) or not all(map(math.isfinite, (reply.points, *reply.lost))):
        return "sent reasons or points that are out of range"
    return ""
