"""The arguments of an evaluation, checked before its log is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from fastrank.inputs import as_column, shown
from fastrank.model import Model, scorer_of
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import ESTIMATORS
from fastrank.ope.experimentlog import Log, check_log
from fastrank.ope.propensities import (
    ByFunction,
    ByModel,
    EvaluationPolicy,
    FromColumn,
    FromRows,
    describe,
)
from fastrank.ope.results import check_level
from fastrank.policies import Policy
from fastrank.scorer import Scorer

__all__ = ["DEFAULT_ESTIMATORS", "LOGGING", "Question", "longest_of", "question", "settled"]

DEFAULT_ESTIMATORS = (
    "avg", "ips", "snips", "rips", "snrips", "clipped-ips", "replay", "replay-weighted",
)  # fmt: skip
_BY_PREFIX = ("rips", "snrips")  # with one place they equal ips and snips
_MOST_PLACES = 1000  # that are evaluated by default
LOGGING = "logging"  # the reference that means the log's own average


@dataclass(frozen=True, slots=True)
class Question:
    """Arguments of `evaluate` that all of its steps use.

    Attributes
    ----------
    policies, logging, reference, cluster, level, thresholds, clip, reward_range
        As in `evaluate`, checked.
    labels, descriptions : list of str
        The labels of the policies, and short descriptions.
    estimators : list of str, or None
        As given by the caller.
    asked_places : int
        The number of places given by the caller; 0 for each row's own number.
    places : int
        k: the number of places evaluated.
    longest : int
        Number of places of the log's longest ranking.
    names : list of str
        Estimators, including avg and the leading one, and snips (for iips also snrips) if others
        assume more.
    lead : str
    is_lead_asked : bool
        Whether the caller chose it. If not, snips leads if the log contradicts `lead`.
    """

    policies: Sequence[EvaluationPolicy]
    labels: Sequence[str]
    descriptions: Sequence[str]
    logging: Sequence[Model | Scorer]
    estimators: Sequence[str] | None
    asked_places: int
    places: int
    longest: int
    names: Sequence[str]
    lead: str
    is_lead_asked: bool
    reference: str
    cluster: bool
    level: float
    thresholds: Thresholds
    clip: float
    reward_range: tuple[float, float] | None

    def about(self, policies: Sequence[EvaluationPolicy]) -> Question:
        """The same question about other policies."""
        return replace(
            self,
            policies=policies,
            labels=[each.label for each in policies],
            descriptions=[describe(each) for each in policies],
        )

    def told(self) -> Question:
        """What a summary needs: without policies and models, which may be large."""
        return replace(self, policies=(), logging=())

    def of_longest(self, longest: int) -> Question:
        """The same question for a log whose longest ranking has this many places."""
        lead = self.lead if self.is_lead_asked else None
        places, names, leading = settled(longest, self.asked_places or None, self.estimators, lead)
        return replace(self, longest=longest, places=places, names=names, lead=leading)

    @property
    def difference_level(self) -> float:
        """The level after Bonferroni, over the policies that are compared with the reference."""
        compared = len(self.labels) - (self.reference != LOGGING)
        return 1.0 - (1.0 - self.level) / max(compared, 1)

    @property
    def reference_name(self) -> str:
        """Name of the reference, for people."""
        return "the logging policy" if self.reference == LOGGING else self.reference

    @property
    def unit(self) -> str:
        """The unit that earns a value, for people."""
        if self.places == self.longest:
            return "a ranking"
        return "by the first place" if self.places == 1 else f"by the first {self.places} places"


def question(
    log: Log,
    policies: Sequence[EvaluationPolicy],
    *,
    logging: Sequence[Model | Scorer],
    places: int | None,
    estimators: Sequence[str] | None,
    lead: str | None,
    reference: str,
    cluster: bool,
    level: float,
    thresholds: Thresholds | None,
    clip: float,
    reward_range: tuple[float, float] | None,
    longest: int | None = None,
) -> Question:
    """Check arguments of `evaluate`; a ValueError names one and its value.

    `longest` is the number of places of the log's longest ranking, if it is known.
    """
    check_log(log)
    policies = _evaluation_policies(policies)
    logging = list(as_column("logging", logging, "a sequence of models or catalogs"))
    labels = [policy.label for policy in policies]
    for j, each in enumerate(logging):
        scorer_of(f"logging[{j}]", each)
    for policy in policies:
        if isinstance(policy, ByModel):
            scorer_of(f"policies: {policy.label}: model", policy.model)
    if isinstance(clip, bool) or not isinstance(clip, Real) or not 0.0 < clip < np.inf:
        raise ValueError(f"clip: expected a finite number above 0, got {clip!r}")
    longest = longest or longest_of(log)
    settled_places, names, leading = settled(longest, places, estimators, lead)
    if reward_range is not None and not -np.inf < reward_range[0] < reward_range[1] < np.inf:
        raise ValueError(f"reward_range: expected low < high, both finite, got {reward_range}")
    _check_labels(labels)
    if reference != LOGGING and reference not in labels:
        raise ValueError(f"reference: expected {LOGGING} or a policy's label, got {reference!r}")
    check_level(level)
    return Question(
        policies=policies,
        labels=labels,
        descriptions=[describe(each) for each in policies],
        logging=logging,
        estimators=estimators,
        asked_places=places or 0,
        places=settled_places,
        longest=longest,
        names=names,
        lead=leading,
        is_lead_asked=lead is not None,
        reference=reference,
        cluster=cluster,
        level=level,
        thresholds=thresholds or Thresholds(),
        clip=clip,
        reward_range=reward_range,
    )


def _evaluation_policies(policies: object) -> list[EvaluationPolicy]:
    if isinstance(policies, Mapping):
        raise ValueError(
            f"policies: expected a sequence of evaluation policies, got {shown(policies)}; pass a"
            " list of ByModel(label, policy, model)"
        )
    found = list(as_column("policies", policies, "a sequence of evaluation policies"))
    for j, each in enumerate(found):
        if not isinstance(each, ByModel | FromColumn | FromRows | ByFunction):
            policy = shown(each) if isinstance(each, Policy) else "policy"
            raise ValueError(
                f"policies: row {j}: expected a ByModel, FromColumn, FromRows or ByFunction, got"
                f" {shown(each)}; pass ByModel(label, {policy}, model), for example"
            )
    return found


def longest_of(log: Log) -> int:
    """Number of places of a log's longest ranking, at least 1."""
    return max(1, log.survey()[1])


def settled(
    longest: int, places: int | None, estimators: Sequence[str] | None, lead: str | None
) -> tuple[int, list[str], str]:
    """Resolve places, estimators and lead for a log with this longest ranking."""
    if places is not None and (type(places) is not int or places < 1):
        raise ValueError(f"places: expected an integer of at least 1, got {places!r}")
    if places is None and longest > _MOST_PLACES:
        raise ValueError(
            f"places: the longest ranking has {longest:,} places, and all rows would be taken to"
            f" have as many; say how many are evaluated, at most {_MOST_PLACES:,} unless you know"
        )
    places = longest if places is None else min(places, longest)
    if estimators is None:
        estimators = [name for name in DEFAULT_ESTIMATORS if places > 1 or name not in _BY_PREFIX]
    estimators = list(as_column("estimators", estimators, "a sequence of names"))
    lead = lead or ("snrips" if places > 1 else "snips")
    for name in (*estimators, lead):
        if name not in ESTIMATORS:
            raise ValueError(f"estimators: expected some of {', '.join(ESTIMATORS)}; got {name!r}")
    names = [*dict.fromkeys(["avg", *estimators, lead])]
    if places > 1 and any(ESTIMATORS[name].behaviour for name in names):
        by_place = ["snrips"] if "iips" in names else []
        names = [*dict.fromkeys([*names, *by_place, "snips"])]  # these can contradict the others
    return places, names, lead


def _check_labels(labels: Sequence[str]) -> None:
    if LOGGING in labels:
        raise ValueError(
            f"policies: one is called {LOGGING!r}, which is the name of the reference that stands"
            " for the log's own average; give it another label"
        )
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise ValueError(f"policies: two of them are called {repeated[0]!r}")
