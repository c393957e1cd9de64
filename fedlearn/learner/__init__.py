"""The boosting learner of the side that has labels: objectives, growth, rounds. No channel, no peer's identity.

Read :mod:`~fedlearn.learner.objective`, then :mod:`~fedlearn.learner.grower` (one layer of trees in lock-step), then
:mod:`~fedlearn.learner.booster` (rounds, folds, early stopping). The passive side's features come through
:class:`~fedlearn.learner.grower.Passive`; without it this is an ordinary learner on the active side's own features.
"""
