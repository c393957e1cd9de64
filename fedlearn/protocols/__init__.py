"""One file per two-party protocol, both roles side by side.

Read in this order: handshake, align, matvec, transfer, boost, score.
"""
