"""Experiments: what is said about connection pooling, run and judged.

An experiment is a file of `experiments/`: a question, the claims that answer it, plain code that
does what the claims are about, and a verdict that is computed from what was measured.

    @experiment(question="When are connections opened?", rows=("0.8",), seconds=2)
    def run(lab: Lab, *, pool_size: int = 10) -> None:
        engine = create_engine(lab.url(), pool_size=pool_size)
        opened = len(lab.backends())
        lab.judge(
            "0.8",
            "create_engine opens pool_size connections",
            holds=opened == pool_size,
            measured=f"{opened} open after create_engine(pool_size={pool_size})",
            why="The pool opens a connection when a checkout finds none idle.",
        )

In order of reading: `experiment` (the decorator, and finding the files), `lab` (what an experiment
works with), `ground` (the databases), `outcome` (what was found), `run`, then `report` and `claims`.
"""

from poolkit.experiment.experiment import Experiment, experiment
from poolkit.experiment.lab import Lab, Times

__all__ = ("Experiment", "Lab", "Times", "experiment")
