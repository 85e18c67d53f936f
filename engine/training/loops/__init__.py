"""The loops of training: where the steps of a run come from. An objective names its loop (`Objective.loop`)."""

from collections.abc import Mapping

from loratory.engine.training.loops.rollouts import RolloutLoop
from loratory.engine.training.loops.supervised import SupervisedLoop

LOOPS: Mapping[str, type[SupervisedLoop]] = {"supervised": SupervisedLoop, "rollouts": RolloutLoop}
