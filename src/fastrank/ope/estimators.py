"""Estimators of an evaluation policy's value from logged rankings, as sums that merge.

Each estimator is a smooth function of sums over rankings that does not change when all sums are
scaled. So each keeps its sums for every group of users, and the products of its summands. From
these follow the estimate, its standard error (from the gradient, by the *delta method*: iid from
the products, clustered from the groups) and the bootstrap. Sums can be merged: any split of the
log, in any order, gives the same result.

Notation of the docstrings: pi_0 is the logging policy, pi_1 the evaluation policy; ``w_l`` is the
weight of the first l places, ``prod_{j <= l} pi_1(a_j | a_1..a_{j-1}) / pi_0(a_j | a_1..a_{j-1})``,
and ``w = w_k``; r_l is the reward at place l; n the number of rankings.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, IntArray
from fastrank.ope.batch import GROUPS, MAX_LOG_WEIGHT, Batch
from fastrank.ope.diagnostics import Weights, cluster_error, effective_clusters
from fastrank.ope.tails import BINS, expected_ess

__all__ = [
    "ADDITIVE",
    "CASCADE",
    "ESTIMATORS",
    "INDEPENDENT",
    "Avg",
    "CascadeDr",
    "ClippedIps",
    "Dm",
    "DrPosition",
    "Estimator",
    "Iips",
    "Ips",
    "PseudoInverse",
    "Replay",
    "ReplayWeighted",
    "Rips",
    "Snips",
    "Snrips",
]


# Assumptions about behaviour: a reward depends on its own place and the places above it; or only on
# its own item and place; or the total reward is a sum over places.
CASCADE, INDEPENDENT, ADDITIVE = "cascade", "independent", "additive"

_SAME = 1e-6  # of log-weights: policies that differ by less are the same
_MODEL_EXACT = 1e-3  # of a reward model's values: smaller differences may be rounding
_MOST_PRODUCTS = 256  # summands; for more, their products would dominate the cost


class Estimator:
    """Sums of one estimator; subclasses define the sums and the results.

    Parameters
    ----------
    places : int
        k, the places of every batch.
    clip : float
        Largest weight of `ClippedIps`; the others ignore it.

    Attributes
    ----------
    rows : int
        Rankings so far.
    sums : ndarray of float64, shape (GROUPS, m)
        Sums of the summands, by group.
    products : ndarray of float64, shape (m, m), or None
        Sums of the products of any two summands of a ranking; None if m is above 256.
    counts : ndarray of int64, shape (GROUPS,)
        Rankings of each group.
    mass : ndarray of float64, shape (GROUPS,)
        Sums of the row weights, by group: equal to `counts` without row weights.
    sizes : ndarray of int64
        Numbers of rankings by what they earned.

    Examples
    --------
    >>> from fastrank.ope import ESTIMATORS, Batch
    >>> first, second = ESTIMATORS["ips"](1), ESTIMATORS["ips"](1)
    >>> first.update(Batch.of([[-0.7]], [[-0.7]], [[1.0]]))
    >>> second.update(Batch.of([[-0.7]], [[-0.7]], [[0.0]]))
    >>> first.merge(second)
    >>> first.rows, float(first.value(first.sums.sum(axis=0)))
    (2, 0.5)
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # optional arrays of the batch
    # What it assumes, in words for people.
    assumes: ClassVar[str]
    # The part of that about behaviour, which estimators with weaker assumptions can contradict.
    behaviour: ClassVar[str | None] = None
    # Whether it depends on the evaluation policy at all, which the logging policy must then cover.
    needs_support: ClassVar[bool] = True
    # Whether the weights have the mean 1 under common support.
    unit_mean: ClassVar[bool] = True
    # Whether a mean weight below 1 measures what the logging policy could not show.
    is_whole: ClassVar[bool] = True
    # Whether it uses the log's propensities, and not arrays of its own.
    by_propensities: ClassVar[bool] = True
    # Estimators with the same kind of weights, and the same numerator, have the same `weights`.
    kind_of_weights: ClassVar[str | None] = None

    def __init__(self, places: int, clip: float = 20.0) -> None:
        self.places = places
        self.clip = clip
        self.rows = 0
        width = self._width()
        self.sums = np.zeros((GROUPS, width))
        self.products = np.zeros((width, width)) if width <= _MOST_PRODUCTS else None
        self.counts = np.zeros(GROUPS, np.int64)
        self.mass = np.zeros(GROUPS)
        self.sizes = np.zeros(BINS, np.int64)
        self.weights = Weights()
        self._has_own_weights = True
        self.replicates: FloatArray | None = None  # of these sums, computed on demand

    def share_weights(self, other: Estimator) -> None:
        """Share the weights' sums of another estimator with this kind of weights, which keeps them.

        Both must be given the same batches, and be merged with the same others.
        """
        if self.kind_of_weights is None or self.kind_of_weights != other.kind_of_weights:
            raise ValueError(f"other: {other.name} has other weights than {self.name}")
        self.weights = other.weights
        self._has_own_weights = False

    def update(self, batch: Batch) -> None:
        """Add rankings. O(n m^2), with m two for most estimators and at most 4 k."""
        if batch.places != self.places:
            raise ValueError(f"batch: expected {self.places} places, got {batch.places}")
        if not len(batch):
            return
        self.replicates = None
        summands, which = self._distinct(batch)
        own, groups = batch.row_weights, batch.groups
        if own is not None:
            summands = summands * own[:, None]
        counts = batch.counts
        self.rows += len(batch)
        self.counts += counts
        self.sizes += batch.sizes
        self.mass += counts if own is None else np.bincount(groups, own, GROUPS)
        sums = np.stack([np.bincount(groups, column, GROUPS) for column in summands.T], axis=1)
        self.sums += sums if which is None else sums[:, which]
        if self.products is not None:
            products = summands.T @ summands
            self.products += products if which is None else products[np.ix_(which, which)]
        if self._has_own_weights:
            logs = self._log_weights(batch)
            if logs is not None:
                weights, added = self._weights(batch, logs), self._contributions(batch)
                if own is not None:
                    weights, added = weights * own[:, None], added * own
                    logs = logs + np.log(own)[:, None]
                self._update_weights(batch, logs, weights, added)

    def _update_weights(
        self, batch: Batch, logs: FloatArray, weights: FloatArray, added: FloatArray
    ) -> None:
        self.weights.update(logs, weights, added, batch.groups, batch.row_weights)

    def merge(self, other: Self) -> None:
        """Add the sums of another one of the same kind."""
        if type(other) is not type(self) or (other.places, other.clip) != (self.places, self.clip):
            raise ValueError("other: sums of different kinds cannot be merged")
        self.replicates = None
        self.rows += other.rows
        self.sums += other.sums
        if self.products is not None and other.products is not None:
            self.products += other.products
        self.counts += other.counts
        self.mass += other.mass
        self.sizes += other.sizes
        if self._has_own_weights:
            self.weights.merge(other.weights)

    def cut(self, places: int) -> Self:
        """The same estimator for the first places only, if no ranking so far has more.

        It shares with this one the parts that do not depend on places, so do not add to either.
        """
        found = copy(self)
        found.places = places
        which = self._columns(places)
        found.sums = self.sums[:, which]
        if self.products is not None:
            found.products = self.products[np.ix_(which, which)]
        found.weights = self.weights.cut(places)
        found._has_own_weights = True
        found.replicates = None
        return found

    def value(self, totals: FloatArray) -> FloatArray:
        """The estimate from sums (..., m); NaN where it is undefined."""
        raise NotImplementedError

    def gradient(self, totals: FloatArray) -> FloatArray:
        """The derivatives of the estimate by the sums, (m,)."""
        raise NotImplementedError

    def compared(self, totals: FloatArray) -> FloatArray:
        """The value for comparisons, from sums (..., m): the estimate, or a more stable one."""
        return self.value(totals)

    @property
    def without_each(self) -> FloatArray:
        """The estimates without each one of the groups, (groups that have rows,)."""
        return self.value(self.sums.sum(axis=0) - self.sums[self.counts > 0])

    @property
    def effective_clusters(self) -> float:
        """The number of users with equally many rows that would be as informative."""
        return effective_clusters(self.mass)

    @property
    def expected_reward_ess(self) -> float:
        """Effective rewarded rows, from the spread of the bulk of the rewards' sizes."""
        return expected_ess(self.sizes)

    def doubts(self) -> list[str]:
        """Reasons of this estimator's own against taking its estimate for the policy's value."""
        return []

    @property
    def model_z(self) -> float:
        """Standard errors by which a reward model contradicts itself, clustered; 0 without a model.

        Its weighted values of what was shown, and its means under the evaluation policy, have the
        same expectation, whatever people do and however wrong the model is.
        """
        return 0.0

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the estimator, for its estimates."""
        return {}

    @property
    def matched(self) -> int | None:
        """Rows that it is a mean of, if these are not all rows."""
        return None

    @property
    def bias(self) -> float:
        """Its bias, as far as it is known."""
        return 0.0

    def _width(self) -> int:
        return 2

    def _columns(self, places: int) -> IntArray:
        """Which summands belong to the first places."""
        return np.arange(self._width())

    def _summands(self, batch: Batch) -> FloatArray:
        raise NotImplementedError

    def _distinct(self, batch: Batch) -> tuple[FloatArray, IntArray | None]:
        """The distinct summands (n, u), and each summand's index, (m,); None if all differ."""
        return self._summands(batch), None

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        """Log-weights (n, j) whose spread decides whether the estimate is reliable."""
        raise NotImplementedError

    def _weights(self, batch: Batch, logs: FloatArray) -> FloatArray:
        """The exponentials of the log-weights."""
        return np.asarray(np.exp(np.minimum(logs, MAX_LOG_WEIGHT)))

    def _contributions(self, batch: Batch) -> FloatArray:
        """Each row's contribution to the estimate's numerator, (n,)."""
        return np.asarray(self._summands(batch)[:, 0])


class _Mean(Estimator):
    """A mean over rankings."""

    def _weights(self, batch: Batch, logs: FloatArray) -> FloatArray:
        # The weights of prefixes are computed already.
        return batch.prefix_weights if logs is batch.log_weights else super()._weights(batch, logs)

    def _values(self, batch: Batch) -> FloatArray:
        raise NotImplementedError

    def _summands(self, batch: Batch) -> FloatArray:
        return np.stack([self._values(batch), np.ones(len(batch))], axis=1)

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        return batch.log_weights

    def value(self, totals: FloatArray) -> FloatArray:
        return _ratio(totals[..., 0], totals[..., 1])

    def gradient(self, totals: FloatArray) -> FloatArray:
        return _ratio_gradient(totals)


class _Ratio(Estimator):
    """Weighted rewards over weights."""

    value = _Mean.value
    gradient = _Mean.gradient


class Avg(_Mean):
    """``mean(sum_l r_l)``: what the logging policy earned. Biased for any other policy."""

    name = "avg"
    assumes = "nothing: it is the logging policy's own value"
    needs_support = False
    by_propensities = False

    def __init__(self, places: int, clip: float = 20.0) -> None:
        super().__init__(places, clip)
        self._same = True  # whether both policies are the same

    def update(self, batch: Batch) -> None:
        super().update(batch)
        self._same = self._same and not (np.abs(batch.log_weights) > _SAME).any()

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._same = self._same and other._same

    def doubts(self) -> list[str]:
        return [] if self._same else ["logging_value"]

    def _values(self, batch: Batch) -> FloatArray:
        return batch.earned

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        return np.zeros((len(batch), 1))


class Ips(_Mean):
    """``mean(w sum_l r_l)``: inverse propensity scores of whole rankings.

    Horvitz and Thompson (1952); for rankings Swaminathan et al. (2017) call it IPS, others SIPS.
    """

    name = "ips"
    kind_of_weights = "ranking"
    assumes = "nothing about behaviour; weights of whole rankings vary the most"

    def _values(self, batch: Batch) -> FloatArray:
        return batch.weights * batch.earned

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        return batch.log_weights[:, -1:]


class Rips(_Mean):
    """``mean(sum_l w_l r_l)``: a reward is weighted by its own place and those above it.

    McInerney et al. (2020), "Counterfactual evaluation of slate recommendations with sequential
    reward interactions".
    """

    name = "rips"
    behaviour = CASCADE
    kind_of_weights = "prefixes"
    assumes = "a reward depends on what stands at its place and above it, not below (cascade)"

    def _values(self, batch: Batch) -> FloatArray:
        return batch.weighted_earned


class Iips(Estimator):
    """``mean(sum_l pi_1(a_l at l) / pi_0(a_l at l) r_l)``: each place by its own marginal.

    Li et al. (2018), "Offline evaluation of ranking policies with click models".
    """

    name = "iips"
    behaviour = INDEPENDENT
    needs = ("marginals_logged", "marginals_evaluated")
    by_propensities = False
    assumes = "a reward depends on its own item and place alone"

    def _width(self) -> int:
        return 2 * self.places + 1

    def _columns(self, places: int) -> IntArray:
        of_first = np.arange(places)
        return np.concatenate([of_first, self.places + of_first, [2 * self.places]])

    def _summands(self, batch: Batch) -> FloatArray:
        weights = self._weights(batch, self._log_weights(batch))
        return np.hstack([weights * batch.rewards, weights, np.ones((len(batch), 1))])

    def _contributions(self, batch: Batch) -> FloatArray:
        weights = self._weights(batch, self._log_weights(batch))
        return np.asarray((weights * batch.rewards).sum(axis=1))

    def value(self, totals: FloatArray) -> FloatArray:
        return _ratio(totals[..., : self.places].sum(axis=-1), totals[..., -1])

    def gradient(self, totals: FloatArray) -> FloatArray:
        k = self.places
        by_earned, by_rows = _ratio_gradient(np.array([totals[:k].sum(), totals[-1]]))
        return np.concatenate([np.full(k, by_earned), np.zeros(k), [by_rows]])

    def compared(self, totals: FloatArray) -> FloatArray:
        # Each place by its own weights, so that what rewards have in common adds no variance.
        k = self.places
        return np.asarray(_ratio(totals[..., :k], totals[..., k : 2 * k]).sum(axis=-1))

    def _log_weights(self, batch: Batch) -> FloatArray:
        logged, evaluated = batch.marginals_logged, batch.marginals_evaluated
        assert logged is not None
        assert evaluated is not None
        there = np.arange(self.places) < batch.lengths[:, None]
        with np.errstate(divide="ignore"):
            logs = np.log(evaluated) - np.log(np.where(there, logged, 1.0))
        return np.where(there, logs, 0.0)


class Snips(_Ratio):
    """``sum(w sum_l r_l) / sum(w)``: self-normalised.

    Swaminathan and Joachims (2015), "The self-normalized estimator for counterfactual learning".
    Biased by O(1/n), with less variance; adding a constant to all rewards adds it to the estimate.
    """

    name = "snips"
    kind_of_weights = "ranking"
    assumes = Ips.assumes

    def _summands(self, batch: Batch) -> FloatArray:
        return np.stack([batch.weights * batch.earned, batch.weights], axis=1)

    _log_weights = Ips._log_weights


class Snrips(Estimator):
    """``sum_l (sum w_l r_l / sum w_l) (sum w_{l-1} / all w_{l-1})``: normalised place by place.

    All sums but the last are over the rankings that have place l; the last is over all rankings.
    Whether somebody reaches a place may depend on the places above it (people scroll until they
    like something). So the presence of a place is weighted by the places above it, as its reward is
    by the places down to it.
    """

    name = "snrips"
    behaviour = CASCADE
    kind_of_weights = "prefixes"
    assumes = Rips.assumes

    def _width(self) -> int:
        return 4 * self.places

    def _columns(self, places: int) -> IntArray:
        return (self.places * np.arange(4)[:, None] + np.arange(places)).ravel()

    def _distinct(self, batch: Batch) -> tuple[FloatArray, IntArray | None]:
        k, weights, above = self.places, batch.prefix_weights, batch.weights_above
        there = np.arange(k) < batch.lengths[:, None]
        if there.all():  # then a place's weight is the weight above the next place
            one = np.ones((len(batch), 1))
            prefixes = np.arange(k, 2 * k)
            of_above = np.concatenate([[2 * k], prefixes[:-1]])
            which = np.concatenate([np.arange(k), prefixes, of_above, of_above])
            return np.hstack([batch.weighted_rewards, weights, one]), which
        shown = (np.where(there, each, 0.0) for each in (weights, above))
        return np.hstack([batch.weighted_rewards, *shown, above]), None

    def _log_weights(self, batch: Batch) -> FloatArray:
        return batch.log_weights

    def _weights(self, batch: Batch, logs: FloatArray) -> FloatArray:
        return batch.prefix_weights

    def _contributions(self, batch: Batch) -> FloatArray:
        return batch.weighted_earned

    def value(self, totals: FloatArray) -> FloatArray:
        earned, weight, shown, above = self._parts(totals)
        # A place that no ranking has earns nothing; a place without any weight is undefined.
        each = np.where(shown > 0.0, _ratio(earned, weight) * _ratio(shown, above), 0.0)
        return np.where(above[..., 0] > 0.0, each.sum(axis=-1), np.nan)

    def gradient(self, totals: FloatArray) -> FloatArray:
        earned, weight, shown, above = self._parts(totals)
        there = shown > 0.0
        if not above[0] > 0.0 or not (weight[there] > 0.0).all():
            return np.full(len(totals), np.nan)
        mean, share = np.zeros((2, self.places))
        mean[there] = earned[there] / weight[there]
        share[there] = shown[there] / above[there]
        by_weight, by_above = np.zeros((2, self.places))
        by_weight[there], by_above[there] = 1.0 / weight[there], 1.0 / above[there]
        return np.concatenate(
            [
                share * by_weight,
                -mean * share * by_weight,
                mean * by_above,
                -mean * share * by_above,
            ]
        )

    def _parts(self, totals: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        k = self.places
        return (
            totals[..., :k],
            totals[..., k : 2 * k],
            totals[..., 2 * k : 3 * k],
            totals[..., 3 * k :],
        )


class ClippedIps(_Mean):
    """``mean(min(w, M) sum_l r_l)``: ips with bounded weights. Biased low if rewards are >= 0.

    Ionides (2008), "Truncated importance sampling".
    """

    name = "clipped-ips"
    is_whole = False
    assumes = "that what is cut off is small; its bias is not in the interval"

    def __init__(self, places: int, clip: float = 20.0) -> None:
        super().__init__(places, clip)
        self._kept = self._cut = 0.0  # weighted rewards, without their signs

    def update(self, batch: Batch) -> None:
        super().update(batch)
        earned = np.abs(batch.earned)
        if batch.row_weights is not None:
            earned = earned * batch.row_weights
        kept = np.minimum(batch.weights, self.clip)
        self._kept += float(kept @ earned)
        self._cut += float((batch.weights - kept) @ earned)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._kept += other._kept
        self._cut += other._cut

    @property
    def cut_off(self) -> float:
        """Share of the weighted reward that is cut off: its relative bias, for rewards >= 0."""
        whole = self._kept + self._cut
        return self._cut / whole if whole > 0.0 else 0.0

    @property
    def parameters(self) -> dict[str, float]:
        return {"clip": self.clip, "cut_off": self.cut_off}

    @property
    def bias(self) -> float:
        return self._cut / float(self.mass.sum()) if self.rows else 0.0

    def _values(self, batch: Batch) -> FloatArray:
        return np.minimum(batch.weights, self.clip) * batch.earned

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        # Their mean shows how much is cut off: 1 less the bias of a reward that is always 1.
        return np.minimum(batch.log_weights[:, -1:], np.log(self.clip))


class Replay(_Ratio):
    """Mean reward of the rankings that the evaluation policy, drawing once, would also show.

    Li et al. (2011), "Unbiased offline evaluation of contextual-bandit-based news article
    recommendation algorithms". Correct only if a match is equally likely for every user: uniform
    logging from equally many items.

    Attributes
    ----------
    matches : int
        Rankings that matched.
    """

    name = "replay"
    assumes = "uniform logging over equally many items for everyone"
    unit_mean = False

    def __init__(self, places: int, clip: float = 20.0) -> None:
        super().__init__(places, clip)
        self.matches = 0
        self._logged = (np.inf, -np.inf)  # least and largest log-propensity of a ranking
        self._eligible = (np.inf, -np.inf)

    def update(self, batch: Batch) -> None:
        super().update(batch)
        self.matches += int(np.count_nonzero(batch.matched))
        if len(batch):
            n_eligible = np.zeros(1) if batch.n_eligible is None else batch.n_eligible
            self._logged = _range(self._logged, batch.logged.sum(axis=1))
            self._eligible = _range(self._eligible, n_eligible)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.matches += other.matches
        self._logged = _range(self._logged, np.array(other._logged))
        self._eligible = _range(self._eligible, np.array(other._eligible))

    def _update_weights(
        self, batch: Batch, logs: FloatArray, weights: FloatArray, added: FloatArray
    ) -> None:
        # Only the rows that matched: the others are not part of the mean.
        there, own = batch.matched, batch.row_weights
        if there.any():
            self.weights.update(
                logs[there],
                weights[there],
                added[there],
                batch.groups[there],
                None if own is None else own[there],
            )

    @property
    def matched(self) -> int | None:
        return self.matches

    def doubts(self) -> list[str]:
        found = [] if self.matches else ["no_overlap"]
        return found if self.constant_match else [*found, "match_not_constant"]

    @property
    def constant_match(self) -> bool:
        """Whether every logged ranking had the same propensity, among as many items."""
        (low, high), (fewest, most) = self._logged, self._eligible
        return high - low <= 1e-9 * max(1.0, -low) and fewest == most

    def _summands(self, batch: Batch) -> FloatArray:
        weights = self._weights(batch, self._log_weights(batch))[:, 0]
        return np.stack([weights * batch.earned, weights], axis=1)

    def _log_weights(self, batch: Batch) -> FloatArray:
        return np.where(batch.matched, 0.0, -np.inf)[:, None]


class ReplayWeighted(Replay):
    """`Replay` with each match weighted by 1 / pi_0: correct under any logging with support."""

    name = "replay-weighted"
    assumes = "nothing about behaviour; uses the matches alone"

    @property
    def constant_match(self) -> bool:
        return True  # the weights correct for differences

    def _log_weights(self, batch: Batch) -> FloatArray:
        return np.where(batch.matched, -batch.logged.sum(axis=1), -np.inf)[:, None]


class Dm(_Mean):
    """``mean(q of what pi_1 shows)``: the direct method, from a reward model alone."""

    name = "dm"
    needs = ("q_direct",)
    by_propensities = False
    assumes = "that the reward model is right"

    def doubts(self) -> list[str]:
        return ["reward_model_alone"]

    def _values(self, batch: Batch) -> FloatArray:
        assert batch.q_direct is not None
        return batch.q_direct

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        return None


class DrPosition(Estimator):
    """``mean(sum_l [w_l (r_l - q(a_l)) + w_{l-1} sum_a pi_1(a | above) q(a)])``: doubly robust.

    Dudik et al. (2011), "Doubly robust policy evaluation and learning", at every place. Right
    whatever the reward model q is; the better q, the less it varies.
    """

    name = "dr-position"
    behaviour = CASCADE
    kind_of_weights = "prefixes"
    needs: ClassVar[tuple[str, ...]] = ("q_logged", "q_expected")
    assumes = Rips.assumes

    def __init__(self, places: int, clip: float = 20.0) -> None:
        super().__init__(places, clip)
        self._is_told = True  # by the reward model: the rewards themselves

    def update(self, batch: Batch) -> None:
        super().update(batch)
        self._is_told = self._is_told and np.array_equal(batch.rewards, self._model(batch)[0])

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._is_told = self._is_told and other._is_told

    def doubts(self) -> list[str]:
        return ["reward_model_alone"] if self._is_told else []

    @property
    def model_z(self) -> float:
        total, size, mass = self.sums.sum(axis=0)[1:]
        if not abs(total) > _MODEL_EXACT * size:
            return 0.0
        mean = total / mass
        residuals = self.sums[:, 1] - self.sums[:, 3] * mean
        error = cluster_error(residuals / mass, self.counts)
        return 0.0 if error is None else float(mean / max(error, 1e-300))

    def value(self, totals: FloatArray) -> FloatArray:
        return _ratio(totals[..., 0], totals[..., 3])

    def gradient(self, totals: FloatArray) -> FloatArray:
        by_value, by_rows = _ratio_gradient(totals[[0, 3]])
        return np.array([by_value, 0.0, 0.0, by_rows])

    def _width(self) -> int:
        return 4

    def _summands(self, batch: Batch) -> FloatArray:
        # The values; the model's contributions, which have the mean 0, and their size; rows.
        q, expected = self._model(batch)
        of_shown, of_all = batch.prefix_weights * q, batch.weights_above * expected
        control = (of_all - of_shown).sum(axis=1)
        values = batch.weighted_earned + control
        return np.stack([values, control, np.abs(of_all).sum(axis=1), np.ones(len(batch))], axis=1)

    def _model(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        assert batch.q_logged is not None
        assert batch.q_expected is not None
        return batch.q_logged, batch.q_expected

    def _log_weights(self, batch: Batch) -> FloatArray | None:
        return batch.log_weights

    def _weights(self, batch: Batch, logs: FloatArray) -> FloatArray:
        return batch.prefix_weights

    def _contributions(self, batch: Batch) -> FloatArray:
        # Only the weighted part, not what the reward model adds for all rows.
        return batch.weighted_earned


class CascadeDr(DrPosition):
    """``mean(sum_l [w_l (r_l - Q_l) + w_{l-1} E_pi_1 Q_l])``, Q_l the rewards from place l on.

    Kiyohara et al. (2022), "Doubly robust off-policy evaluation for ranking policies under the
    cascade behavior model".
    """

    name = "cascade-dr"
    needs = ("cascade_q_logged", "cascade_q_expected")
    assumes = Rips.assumes

    def _model(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        assert batch.cascade_q_logged is not None
        assert batch.cascade_q_expected is not None
        return batch.cascade_q_logged, batch.cascade_q_expected


class PseudoInverse(_Mean):
    """``mean(q_1^T Gamma_0^+ 1_s sum_l r_l)``: the pseudo-inverse estimator for slates.

    Swaminathan et al. (2017), "Off-policy evaluation for slate recommendation". Weights may be
    negative; their mean is still 1 if the logging policy can show everything that pi_1 shows.
    """

    name = "pi"
    behaviour = ADDITIVE
    needs = ("slate_weights",)
    by_propensities = False
    assumes = "the whole reward is a sum over places of item-at-place terms"

    def _values(self, batch: Batch) -> FloatArray:
        assert batch.slate_weights is not None
        return batch.slate_weights * batch.earned

    def _log_weights(self, batch: Batch) -> FloatArray:
        assert batch.slate_weights is not None
        with np.errstate(divide="ignore"):
            return np.log(np.abs(batch.slate_weights))[:, None]

    def _weights(self, batch: Batch, logs: FloatArray) -> FloatArray:
        assert batch.slate_weights is not None
        return np.copysign(Estimator._weights(self, batch, logs), batch.slate_weights[:, None])


ESTIMATORS: Mapping[str, type[Estimator]] = {
    cls.name: cls
    for cls in (
        Avg,
        Ips,
        Snips,
        Rips,
        Snrips,
        Iips,
        ClippedIps,
        Replay,
        ReplayWeighted,
        Dm,
        DrPosition,
        CascadeDr,
        PseudoInverse,
    )
}
"""By name: every estimator."""


def _range(known: tuple[float, float], values: npt.NDArray[Any]) -> tuple[float, float]:
    return min(known[0], float(values.min())), max(known[1], float(values.max()))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0.0, numerator / denominator, np.nan)


def _ratio_gradient(totals: FloatArray) -> FloatArray:
    above, below = totals
    if not below > 0.0:
        return np.full(2, np.nan)
    return np.array([1.0 / below, -above / below**2])
