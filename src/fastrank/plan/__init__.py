"""Plan exploration before serving it: what each policy would cost, and what its log would be worth.

For users of a model and a grid of logging policies, a plan shows how much of the deterministic
ranking each policy keeps, how much score it costs, and the effective sample size of its log, as a
share of the rows, for evaluating given target policies.

`fastrank.expectations` computes the figures.
"""

from fastrank.plan.choice import Choice, choose, seconds_for
from fastrank.plan.grid import Plan, estimated_seconds, explore
from fastrank.plan.points import Advance, Kind, Point, Share, Target
from fastrank.plan.positions import iips_shares
from fastrank.plan.solve import Solution, solve_ess, solve_overlap
from fastrank.plan.temperatures import OwnTemperatures, own_temperatures
from fastrank.policies.relative import RelativeTemperature

__all__ = [
    "Advance",
    "Choice",
    "Kind",
    "OwnTemperatures",
    "Plan",
    "Point",
    "RelativeTemperature",
    "Share",
    "Solution",
    "Target",
    "choose",
    "estimated_seconds",
    "explore",
    "iips_shares",
    "own_temperatures",
    "seconds_for",
    "solve_ess",
    "solve_overlap",
]
