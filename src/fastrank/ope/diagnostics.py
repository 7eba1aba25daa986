"""Whether an estimate is reliable: the spread of the importance weights, and the verdict."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, IntArray
from fastrank.ope.batch import GROUPS, MAX_LOG_WEIGHT

__all__ = [
    "BINS_PER_OCTAVE",
    "Diagnostics",
    "PlaceDiagnostics",
    "Thresholds",
    "Weights",
    "cluster_error",
    "effective_clusters",
]


# Bins of the weights' histogram: this many per doubling, over this range of log2. Values outside
# are counted in the last bin on their side.
BINS_PER_OCTAVE = 4
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -40, 60
_BINS = (_HIGHEST_OCTAVE - _LOWEST_OCTAVE) * BINS_PER_OCTAVE
_ONE = -_LOWEST_OCTAVE * BINS_PER_OCTAVE  # the bin that starts at 1


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits beyond which an estimate is low_overlap, or worse.

    Attributes
    ----------
    reward_ess, difference_reward_ess : float
        Least effective number of rewarded rows, for an estimate and for a difference; for the
        latter both as counted and as the spread of the rewards' sizes suggests.
    max_weight_share : float
        Largest share of the weight on one row.
    heaviest_share : float
        Largest share of the weight on the heaviest 1 % of rows.
    mean_weight : float
        Largest distance of the mean weight from 1.
    mean_weight_z : float
        The same in standard errors, if it is above .001 (propensities are not that exact). Also the
        limit for a reward model's values of what was shown compared with its means, and for what an
        arm of an experiment earned compared with the estimate from another arm's rows.
    uncovered : float
        Largest probability of rankings that the logging policy could not show.
    malformed : float
        Largest share of rows that had to be set aside as malformed.
    set_aside : float
        Largest share of rows left out for lack of rewards, users or propensities.
    clipped : float
        Largest bias of clipped-ips, in standard errors, due to clipping.
    clusters : float
        Least effective number of users (`effective_clusters`), by their rows, for an interval.
    reward_model : float
        Largest distance, in standard errors, between a reward model's weighted values of what was
        shown and its means.
    behaviour : float
        Largest distance, in standard errors, between estimates that assume less and more about how
        people behave.
    behaviour_error : float
        Largest standard error of the distance to snips, in units of the error of iips or pi, which
        assume the most.

    Notes
    -----
    Apart from the few rewarded rows that are required at all, no status depends on rewards: a limit
    of 200 would pass logs that were lucky, whose estimates are too high. Instead, few or uneven
    rewards widen the interval; with 3 rewarded rows it is so wide that luck does not show.
    """

    reward_ess: float = 3.0
    difference_reward_ess: float = 8.0
    max_weight_share: float = 0.01
    heaviest_share: float = 0.25
    mean_weight: float = 0.05
    mean_weight_z: float = 4.0
    uncovered: float = 0.01
    malformed: float = 0.001
    set_aside: float = 0.05
    clipped: float = 0.4
    clusters: float = 30.0
    reward_model: float = 3.0
    behaviour: float = 3.0
    behaviour_error: float = 0.5

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0.0:
                raise ValueError(f"{each.name}: expected a number of at least 0, got {value!r}")

    def to_dict(self) -> dict[str, float | None]:
        """The limits for JSON; an infinite limit is None."""
        return {name: v if math.isfinite(v) else None for name, v in asdict(self).items()}


class PlaceDiagnostics(TypedDict):
    """The figures of `Diagnostics` for one weighted place."""

    ess: float
    mean_weight: float
    mean_weight_z: float | None
    max_weight_share: float
    heaviest_share: float


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The spread of the weights; with several places, the worst place for each figure.

    Attributes
    ----------
    ess : float
        Effective sample size ``(sum w)^2 / sum w^2``: the number of rows of equal weight that would
        be as informative (Kish 1965).
    ess_share : float
        `ess` divided by the number of rows.
    reward_ess : float
        ``(sum |v|)^2 / sum v^2`` of the rows' contributions to the estimate: effective rewarded
        rows.
    max_weight_share, heaviest_share : float
        Shares of the weight on the heaviest row, and on the heaviest 1 % of rows.
    mean_weight : float
        Has the mean 1 if the logging policy could show everything that the evaluation policy shows.
    mean_weight_z : float or None
        Its distance from 1 in standard errors, clustered by user; None if unknown. The place of the
        worst z and the place of the worst mean may differ: see `by_place`.
    overflows : int
        Rows whose weight exceeds exp(345): too large to sum.
    negative_share : float
        Share of the rows with a negative weight, which only the pseudo-inverse has. Shares of the
        weight refer to its absolute value, `ess` and `mean_weight` to its sum.
    by_place : tuple of PlaceDiagnostics
        For each weighted place.
    """

    ess: float
    ess_share: float
    reward_ess: float
    max_weight_share: float
    heaviest_share: float
    mean_weight: float
    mean_weight_z: float | None
    overflows: int
    negative_share: float = 0.0
    by_place: tuple[PlaceDiagnostics, ...] = field(default=(), repr=False)


class Weights:
    """Sums about weights of j places, which can be merged.

    Attributes
    ----------
    histogram_counts, histogram_sums : ndarray, shape (bins, j)
        Rows and absolute weight in bins of a quarter of a doubling; rows of weight 0 are in `zeros`
        (j,), and rows below 0 also in `negatives` (j,).
    """

    def __init__(self) -> None:
        self.rows = 0
        self.overflows = 0
        self.contributions = 0.0
        self.squared_contributions = 0.0
        self._start(0)

    def _start(self, places: int) -> None:
        self.places = places
        self.counts = np.zeros(GROUPS, np.int64)
        self.mass = np.zeros(GROUPS)
        self.sums = np.zeros((GROUPS, places))
        self.squares = np.zeros(places)
        self.largest = np.zeros(places)
        self.zeros = np.zeros(places, np.int64)
        self.negatives = np.zeros(places, np.int64)
        self.absolute = np.zeros(places)
        self.histogram_counts = np.zeros((_BINS, places), np.int64)
        self.histogram_sums = np.zeros((_BINS, places))

    def update(
        self,
        logs: FloatArray,
        weights: FloatArray,
        contributions: FloatArray,
        groups: IntArray,
        row_weights: FloatArray | None = None,
    ) -> None:
        """Add rows: weights (n, j), logs of their absolute values, contributions (n,), groups (n,).

        Contributions are to the estimate. They and the weights are multiplied by the `row_weights`
        (n,), if any.
        """
        if not self.places:
            self._start(logs.shape[1])
        self.rows += len(logs)
        counts = np.bincount(groups, minlength=GROUPS)
        self.counts += counts
        self.mass += counts if row_weights is None else np.bincount(groups, row_weights, GROUPS)
        if logs.max() > MAX_LOG_WEIGHT:
            self.overflows += int((logs > MAX_LOG_WEIGHT).any(axis=1).sum())
        self.contributions += float(np.abs(contributions).sum())
        self.squared_contributions += float(np.square(contributions).sum())
        if row_weights is None and not logs.any() and (weights == 1.0).all():  # its own policy
            self._add_ones(len(logs), counts)
            return
        self.squares += np.einsum("ij,ij->j", weights, weights)
        sizes = weights
        below = np.count_nonzero(weights < 0.0, axis=0)
        if below.any():
            sizes = np.abs(weights)
            self.negatives += below
        self.largest = np.maximum(self.largest, sizes.max(axis=0))
        self.absolute += np.ones(len(sizes)) @ sizes
        scaled = logs * (BINS_PER_OCTAVE / np.log(2.0))
        scaled += _ONE
        bins = np.clip(scaled, 0.0, _BINS - 1.0, out=scaled).astype(np.int64)
        for j in range(self.places):
            column, where = weights[:, j], bins[:, j]
            self.sums[:, j] += np.bincount(groups, column, GROUPS)
            nothing = len(column) - np.count_nonzero(column)
            self.zeros[j] += nothing
            counts = np.bincount(where, minlength=_BINS)
            counts[0] -= nothing
            self.histogram_counts[:, j] += counts
            self.histogram_sums[:, j] += np.bincount(where, sizes[:, j], _BINS)

    def _add_ones(self, rows: int, counts: IntArray) -> None:
        """Add rows that weigh 1 at every place."""
        self.squares += rows
        self.absolute += rows
        self.largest = np.maximum(self.largest, 1.0)
        self.sums += counts[:, None]
        self.histogram_counts[_ONE] += rows
        self.histogram_sums[_ONE] += rows

    def merge(self, other: Weights) -> None:
        """Add the sums of another one."""
        if not other.places:
            return
        if not self.places:
            self._start(other.places)
        self.largest = np.maximum(self.largest, other.largest)
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def cut(self, places: int) -> Weights:
        """The sums of the first places, for reading."""
        found = copy(self)
        found.places = min(self.places, places)
        for name in _BY_PLACE:
            setattr(found, name, getattr(self, name)[..., :places])
        return found

    def heaviest_share(self, share: float = 0.01) -> FloatArray:
        """Share of the weight on the heaviest `share` of the rows, (j,).

        Computed from the histogram: rows of one bin, which differ by at most 19 %, count as equal.
        """
        result = np.zeros(self.places)
        for j in range(self.places):
            counts, sums = self.histogram_counts[::-1, j], self.histogram_sums[::-1, j]
            filled = np.flatnonzero(counts > 0)
            before = np.cumsum(counts[filled]) - counts[filled]
            part = np.clip((share * self.rows - before) / counts[filled], 0.0, 1.0)
            total = sums.sum()
            result[j] = (part * sums[filled]).sum() / total if total > 0.0 else 0.0
        return result

    def histogram(self) -> list[tuple[float, int, float]]:
        """Lower end, rows and weight of each non-empty bin of the first place."""
        if not self.places:
            return []
        counts, sums = self.histogram_counts[:, 0], self.histogram_sums[:, 0]
        result = [(0.0, int(self.zeros[0]), 0.0)] if self.zeros[0] else []
        for j in np.flatnonzero(counts).tolist():
            low = 2.0 ** (_LOWEST_OCTAVE + j / BINS_PER_OCTAVE)
            result.append((low, int(counts[j]), float(sums[j])))
        return result

    def result(self) -> Diagnostics | None:
        """The diagnostics; None if nothing is weighted."""
        if not self.places:
            return None
        n = self.rows
        totals = self.sums.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ess = np.where(self.squares > 0.0, totals**2 / self.squares, 0.0)
            largest = np.where(self.absolute > 0.0, self.largest / self.absolute, 0.0)
        mean = totals / self.mass.sum()
        z = [self._z(j, float(mean[j])) for j in range(self.places)]
        heaviest = self.heaviest_share()
        added, squared = self.contributions, self.squared_contributions
        farthest = int(np.argmax(np.abs(mean - 1.0)))
        by_place: tuple[PlaceDiagnostics, ...] = tuple(
            {
                "ess": float(ess[j]),
                "mean_weight": float(mean[j]),
                "mean_weight_z": z[j],
                "max_weight_share": float(largest[j]),
                "heaviest_share": float(heaviest[j]),
            }
            for j in range(self.places)
        )
        return Diagnostics(
            ess=float(ess.min()),
            ess_share=float(ess.min() / n),
            reward_ess=added * (added / squared) if squared > 0.0 else 0.0,  # within float64
            max_weight_share=float(largest.max()),
            heaviest_share=float(heaviest.max()),
            mean_weight=float(mean[farthest]),
            mean_weight_z=z[farthest],
            overflows=self.overflows,
            negative_share=float(self.negatives.max() / n),
            by_place=by_place,
        )

    def _z(self, place: int, mean: float) -> float | None:
        """Distance of the mean weight from 1 in standard errors, clustered by group."""
        if abs(mean - 1.0) < 1e-9:
            return 0.0  # a policy under another name differs from itself only by rounding
        residuals = self.sums[:, place] - self.mass * mean
        error = cluster_error(residuals / self.mass.sum(), self.counts)
        return None if error is None else (mean - 1.0) / max(error, 1e-12)


_ADDED = (
    "rows",
    "counts",
    "mass",
    "overflows",
    "contributions",
    "squared_contributions",
    "sums",
    "squares",
    "zeros",
    "negatives",
    "absolute",
    "histogram_counts",
    "histogram_sums",
)


_BY_PLACE = (
    *("sums", "squares", "largest", "zeros", "negatives", "absolute"),
    *("histogram_counts", "histogram_sums"),
)


def effective_clusters(shares: npt.NDArray[Any]) -> float:
    """``(sum x_g)^2 / sum x_g^2``: the number of equal groups of the same worth (Kish 1965).

    A few users with most of the rows, or of the reward, count as few users, however many others
    there are. inf if nobody has a share.
    """
    total = float(np.abs(shares).sum())
    if not total:
        return math.inf
    return 1.0 / float(np.square(np.abs(shares) / total).sum())


def cluster_error(influence: FloatArray, counts: IntArray) -> float | None:
    """Standard error from each group's contribution; None with fewer than two groups."""
    clusters = np.count_nonzero(counts)
    if clusters < 2:
        return None
    return float(np.sqrt(np.square(influence).sum() * clusters / (clusters - 1)))
