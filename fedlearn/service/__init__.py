"""Long-running services that score one applicant at a time, and what they keep: models, audit log, counts.

``registry`` and ``audit`` are files of one party. ``scorer`` evaluates a share for one row of a ``store``.
``answering`` is the passive side's service and ``deciding`` the active side's, both without a network; ``rpc`` and
``web`` carry requests, ``host`` runs it all.
"""
