"""The report page of evaluations: first what can be decided, then what that rests on.

This module computes what templates/report.html cannot: words for codes, figures with as many digits
as their errors justify, and coordinates of the drawings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastrank.eventlog.account import told_of
from fastrank.ope.armsresults import ArmsEvaluation
from fastrank.ope.audit import Audit
from fastrank.ope.diagnostics import BINS_PER_OCTAVE
from fastrank.ope.estimators import ESTIMATORS
from fastrank.ope.question import LOGGING
from fastrank.ope.results import REASONS, Difference, Estimate
from fastrank.ope.spread import Interval
from fastrank.ope.summary import Evaluation, PolicyResult, StratumResult
from fastrank.ope.verdict import explain

__all__ = ["Section", "is_rounding", "render"]

_STRATA = 20  # most strata shown, those with the most rows
_OPEN = 4  # up to this many policies, all figures are unfolded
_BARS = 40
_ROUNDING = 1e-6  # relative to the value: a smaller difference counts as none
_DECADES = 6  # ESS shares below 1e-6 are drawn at the bottom
_REASONS = 2  # most reasons in a verdict; the others are below it
_NOTHING = "–"

_SET_ASIDE: Mapping[str, str] = {
    "fallback": "served by the fallback, not by the logging policy",
    "caller_seed": "the caller chose the seed, so that the logged propensity is not the true one",
    "not_shown": "never shown: no place of it was displayed",
    "reward_not_observed": "the reward was not observed, which is not the same as 0",
    "unknown_user": "the evaluation policy's model does not know the user",
    "no_query": "no query was logged, and a catalog alone does not know the user",
    "query_of_other_length": "the query does not fit the evaluation policy's catalog",
    "not_computable": "the query is too long for the evaluation policy's catalog, or the user's"
    " temperature makes one that is out of range",
    "bias_of_another_catalog": "the bias is one of another catalog's items",
    "after_of_another_catalog": "an earlier page showed an item that the evaluation policy's"
    " catalog lacks, so that the item's groups are unknown",
    "params_of_another_score": "the score's parameters do not fit it",
    "score_not_at_hand": "the score is a function that the model does not have",
    "seen_not_at_hand": "what the user had seen is stored with a model that was not given",
    "features_of_another_version": "the score or the rules use columns that differ in the model",
}
_STATUSES: Mapping[str, tuple[str, str]] = {
    "ok": (
        "ok",
        "The log supports this number: its interval is reliable as far as the estimator's"
        " assumptions hold.",
    ),
    "biased": (
        "biased",
        "The number has a bias that no row of the log shows, and its interval does not include it:"
        " it is another policy's value, or a model's alone, or too much of it was cut off.",
    ),
    "low_overlap": (
        "low overlap",
        "Too few logged rankings are like those of the policy: the number depends on a handful of"
        " rows, and its interval is too narrow. It is not a result.",
    ),
    "malformed_log": (
        "malformed log",
        "So many rows are broken, or rewards missing, that those left may not stand for the rest;"
        " or users share their noise. Repair the log first.",
    ),
    "unsupported": (
        "unsupported",
        "The log cannot answer: the policy shows rankings that could not be in it, or the log is"
        " not from the model that is said to have written it.",
    ),
}
_GLOSSARY: Mapping[str, str] = {
    "Propensity": "The probability with which the logging policy showed what it showed. It is"
    " logged with every ranking; without it, nothing on this page could be computed.",
    "Importance weight": "How many times as likely a logged ranking is under the evaluated policy"
    " as under the logging policy. Each logged row counts with its weight.",
    "Effective sample size (ESS)": "The number of rows of equal weight that would be as"
    " informative. 20,000 rows with an ESS of 50 are worth 50 rows.",
    "Reward ESS": "The same for rows that earned something: the number of equally rewarded rows"
    " that would support the estimate as well. If it is small, intervals are wide and asymmetric.",
    "Uncovered mass": "How often the evaluated policy would show a ranking that the logging policy"
    " could never have shown. The log contains no information about these.",
    "Overlap": "How far both policies show the same rankings. Without overlap a few rows have all"
    " of the weight; more rows of the same log hardly help, more exploration does.",
    "Self-normalised": "Divided by the sum of the weights instead of the number of rows (snips,"
    " snrips): much less variance, for a bias that vanishes as the log grows.",
    "Leading estimator": "The estimator that the verdict rests on. It is snips, which assumes"
    " nothing about behaviour, if that is nearly as precise as snrips, or if the log casts doubt on"
    " the assumption of snrips: from the same rows, both should give nearly the same value.",
    "Cascade assumption": "People look from the top down, so that lower places do not change what"
    " they do above. Then a reward needs only the weight of the places down to it.",
    "Standard error, clustered": "Rows of one user resemble each other, so the error counts users"
    " instead of rows. The design effect is the number of rows that are worth one independent row.",
    "Bootstrap": "The interval from resampling the users 1,000 times. If it differs much from the"
    " normal one, trust neither.",
    "Replay": "Counts only rows for which the evaluated policy would have shown exactly the same"
    " ranking: the rows that match.",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One log's evaluation.

    Attributes
    ----------
    title : str
    evaluation : Evaluation
    audit : Audit or None
        None if the log was not audited.
    arms : ArmsEvaluation, optional
        Given if its rows belong to an experiment.
    """

    title: str
    evaluation: Evaluation
    audit: Audit | None
    arms: ArmsEvaluation | None = None


def render(sections: Sequence[Section]) -> str:
    """Render a page that shows evaluations.

    Parameters
    ----------
    sections : sequence of Section
        In the order of the page.

    Returns
    -------
    str
        HTML that loads nothing and runs nothing; identical for identical sections. Everything that
        comes from a log or a command line is escaped.

    Raises
    ------
    ModuleNotFoundError
        Without jinja2, which is in the extra ``ope``.

    Notes
    -----
    About 10 kB per policy and log. The 20 strata of a log with the most rows are shown.
    """
    from fastrank import page  # needs jinja2

    return page.render(
        "report.html",
        sections=[_view(section) for section in sections],
        statuses=_STATUSES,
        glossary=_GLOSSARY,
        estimators=ESTIMATORS,
        set_aside=_SET_ASIDE,
        nothing=_NOTHING,
        figure=_figure,
        interval=_interval,
        count=_count,
        percent=_percent,
    )


def _view(section: Section) -> dict[str, Any]:
    """What the template needs in addition to the evaluation."""
    evaluation = section.evaluation
    strata = sorted(evaluation.strata, key=lambda each: -each.rows)
    reference = "the logging policy" if evaluation.reference == LOGGING else evaluation.reference
    logged = evaluation.logged
    return {
        "title": section.title,
        "logged_earned": logged if logged.value is not None else None,
        "evaluation": evaluation,
        "audit": section.audit,
        "arms": section.arms,
        "reference": reference,
        "compared": sum(bool(policy.differences) for policy in evaluation.policies),
        "logged_by": [_law(each) for each in strata[:3]],
        "leads": list(dict.fromkeys(policy.lead for policy in evaluation.policies)),
        "short": _short(evaluation, reference),
        "verdicts": [_verdict(evaluation, each) for each in evaluation.policies],
        "next_step": evaluation.next_step,
        "forest": _forest(evaluation),
        "policies": [_policy(evaluation, each) for each in evaluation.policies],
        "unfolded": len(evaluation.policies) <= _OPEN,
        "strata": [
            {"result": each, "law": _law(each), "policies": _of_stratum(evaluation, each)}
            for each in strata[:_STRATA]
        ],
        "strata_left": strata[_STRATA:],
        "joins": [
            {
                "facts": {n: v for n, v in join.items() if not isinstance(v, dict | list)},
                "told": told_of(join),
            }
            for join in evaluation.log["joins"]
        ],
    }


def _law(stratum: StratumResult) -> str:
    """A logging policy in a few words."""
    of = stratum.stratum
    parts = [of.law, *(f"{name} {value:.6g}" for name, value in of.params)]
    return ", ".join([*parts, "fallback"] if of.is_fallback else parts)


def _short(evaluation: Evaluation, reference: str) -> list[tuple[str, str, list[str]]]:
    """What can be decided and what cannot: a kind, words, and the policies concerned."""
    found: dict[str, list[str]] = {}
    for policy in evaluation.policies:
        found.setdefault(_decision(policy), []).append(policy.label)
    words = {
        "more": ("good", f"Earns more than {reference}"),
        "less": ("good", f"Earns less than {reference}"),
        "unseen": ("good", f"No difference to {reference} can be seen"),
        "reference": ("good", "What the others are compared with"),
        "apart": ("doubt", f"Can be estimated, but not compared with {reference}"),
        "doubt": ("doubt", "Cannot be decided from this log"),
        "bad": ("bad", "Cannot be evaluated from this log"),
    }
    return [(*words[kind], found[kind]) for kind in words if kind in found]


def _decision(policy: PolicyResult) -> str:
    if policy.status != "ok":
        return "bad" if policy.status == "unsupported" else "doubt"
    if not policy.differences:
        return "reference"
    difference = policy.differences[policy.lead]
    if difference.status != "ok" or difference.interval is None:
        return "apart"
    if is_rounding(difference, policy.estimates[policy.lead]):
        return "unseen"
    low, high = difference.interval
    return "more" if low > 0.0 else "less" if high < 0.0 else "unseen"


def _policy(evaluation: Evaluation, policy: PolicyResult) -> dict[str, Any]:
    lead = policy.estimates[policy.lead]
    why = {name: _why(evaluation, policy, each) for name, each in policy.estimates.items()}
    # What concerns all policies is printed once.
    of_all = [text for text in why[policy.lead] if all(text in texts for texts in why.values())]
    differences = {name: d for name, d in policy.differences.items() if name != "avg"}
    return {
        "result": policy,
        "lead": lead,
        "all": of_all,
        "estimates": [
            {
                "result": estimate,
                "lead": name == policy.lead,
                "difference": differences.get(name),
                "equal": name in differences and is_rounding(differences[name], estimate),
                "why": [text for text in why[name] if text not in of_all],
            }
            for name, estimate in policy.listed.items()
        ],
        "z": _z(lead),
        "histogram": _histogram(policy),
        "by_place": _by_place(policy),
        "matched": next(
            (each.matched for each in policy.estimates.values() if each.matched is not None), None
        ),
    }


def is_rounding(difference: Difference, estimate: Estimate) -> bool:
    """Whether a difference is only rounding, as for one policy under two names."""
    ends = difference.interval or (math.inf, math.inf)
    return max(map(abs, ends)) <= _ROUNDING * abs(estimate.value or 0.0)


def _z(lead: Estimate) -> str:
    """How far the mean weight is from 1, in standard errors, if by more than rounding."""
    found = lead.diagnostics
    if found is None or abs(found.mean_weight - 1.0) <= _ROUNDING:
        return _NOTHING
    return _figure(found.mean_weight_z, 1.0, "+")


def _why(evaluation: Evaluation, policy: PolicyResult, estimate: Estimate) -> list[str]:
    """Reasons in words, with their figures."""
    return [
        explain(reason, estimate, policy.uncovered, evaluation.thresholds)
        for reason in estimate.reasons
    ]


def _verdict(evaluation: Evaluation, policy: PolicyResult) -> dict[str, Any]:
    """A verdict, with only its first reason if it has many, and the other reasons."""
    why = _why(evaluation, policy, policy.estimates[policy.lead])
    said, listed = policy.verdict, "; ".join(why)
    if len(why) <= _REASONS or listed not in said:
        return {"status": policy.status, "said": said, "more": []}
    return {
        "status": policy.status,
        "said": said.replace(listed, f"{why[0]}, and {len(why) - 1} more reasons"),
        "more": why[1:],
    }


def _of_stratum(evaluation: Evaluation, stratum: StratumResult) -> list[dict[str, Any]]:
    return [
        {
            "label": policy.label,
            "estimate": stratum.estimates[policy.label][policy.lead],
            "uncovered": stratum.uncovered[policy.label],
            "dropped": policy.label in stratum.dropped,
            "why": [REASONS[r] for r in stratum.estimates[policy.label][policy.lead].reasons],
        }
        for policy in evaluation.policies
    ]


# ---- Figures --------------------------------------------------------------------------------


def _figure(value: float | None, error: float | None = None, sign: str = "") -> str:
    """Format a number with as many digits as its error justifies: two digits of the error."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    if error is None or not math.isfinite(error) or error <= 0.0:
        return f"{value:{sign}.4g}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    if digits > 8 or abs(value) >= 1e9:
        return f"{value:{sign}.4g}"
    return f"{value:{sign},.{digits}f}"


def _interval(ends: Interval | None, error: float | None = None, sign: str = "") -> str:
    if ends is None:
        return _NOTHING
    return " to ".join(_figure(end, error, sign) for end in ends)


def _count(value: float | None) -> str:
    """Format a number of rows; fractions, as of effective numbers, are shown if they matter."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _percent(share: float | None, digits: int = 3) -> str:
    if share is None or not math.isfinite(share):
        return _NOTHING
    return f"{100 * share:.{digits}g} %"


# ---- Differences ----------------------------------------------------------------------------


def _forest(evaluation: Evaluation) -> dict[str, Any]:
    """Positions of intervals, points and ticks of the forest plot, in percent of its width."""
    pairs = [(p, p.differences[p.lead]) for p in evaluation.policies if p.differences]
    known = [d for p, d in pairs if d.interval and not is_rounding(d, p.estimates[p.lead])]
    # Estimates that are not results do not set the scale, unless there are no others.
    scaled = [each for each in known if each.status == "ok"] or [
        each for each in known if each.status != "unsupported"
    ]
    ends = [0.0, *(end for each in scaled for end in each.interval or ())]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(100.0 * (value - low) / (high - low), 2)

    return {
        "ticks": [
            (at(value), text) for value, text in (_ticks(low, high) if scaled else [(0.0, "0")])
        ],
        "zero": at(0.0),
        "rows": [_bar(policy, difference, at) for policy, difference in pairs],
    }


def _bar(
    policy: PolicyResult, difference: Difference, at: Callable[[float], float]
) -> dict[str, Any]:
    interval, value = difference.interval, difference.value
    line = None
    if interval is not None and value is not None and difference.status != "unsupported":
        low, high = (at(end) for end in interval)
        line = {
            "low": min(max(low, 0.0), 100.0),
            "high": min(max(high, 0.0), 100.0),
            "value": at(value) if 0.0 <= at(value) <= 100.0 else None,
            "beyond_low": low < 0.0,
            "beyond_high": high > 100.0,
        }
    lead = policy.estimates[policy.lead]
    relative = None
    if difference.status == "ok" and lead.value is not None and value is not None:
        reference = lead.value - value
        relative = f"{100 * value / reference:+.3g} %" if reference > 0.0 else None
    return {
        "policy": policy,
        "difference": difference,
        "equal": is_rounding(difference, lead),
        "decision": _decision(policy),
        "line": line,
        "relative": relative,
    }


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Three to eight round numbers, with their labels."""
    least = (high - low) / 7.5
    size = 10.0 ** math.floor(math.log10(least))
    step = next(m * size for m in (1.0, 2.0, 5.0, 10.0) if m * size >= least)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    ticks = []
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        text = f"{i * step:+,.{digits}f}" if digits <= 6 else f"{i * step:+.3g}"
        ticks.append((i * step, text if i else "0"))
    return ticks


# ---- Weights --------------------------------------------------------------------------------


def _histogram(policy: PolicyResult) -> dict[str, Any] | None:
    """Shares of rows (upwards) and of weight (downwards) by weight, in a box of 400 x 190."""
    rows = sum(count for _, count, _ in policy.histogram)
    total = sum(weight for _, _, weight in policy.histogram)
    if not rows:
        return None
    zeros = sum(count for low, count, _ in policy.histogram if low == 0.0)
    bins = [
        (round(BINS_PER_OCTAVE * math.log2(low)), n, w)
        for low, n, w in policy.histogram
        if low > 0.0
    ]
    left, right, middle, height = 44.0, 390.0, 88.0, 76.0
    start = left + (34.0 if zeros else 0.0)
    first = min([-2 * BINS_PER_OCTAVE, *(j for j, _, _ in bins)])
    last = max([2 * BINS_PER_OCTAVE, *(j + 1 for j, _, _ in bins)])
    wide = max(1, math.ceil((last - first) / _BARS))  # bins per bar
    first = math.floor(first / wide) * wide
    last = math.ceil(last / wide) * wide
    merged: dict[int, tuple[int, float]] = {}
    for j, n, w in bins:
        key = (j - first) // wide
        before = merged.get(key, (0, 0.0))
        merged[key] = before[0] + n, before[1] + w
    shares = {key: (n / rows, w / total if total else 0.0) for key, (n, w) in merged.items()}
    peak = max([zeros / rows, *(max(pair) for pair in shares.values())])
    unit = (right - start) / (last - first)

    def x(bins: float) -> float:
        return round(start + (bins - first) * unit, 1)

    def bar(low: float, width: float, of_rows: float, of_weight: float, text: str) -> Any:
        up, down = (round(height * share / peak, 2) for share in (of_rows, of_weight))
        tip = f"{text}: {_percent(of_rows)} of the rows, {_percent(of_weight)} of the weight"
        return {"x": low, "width": round(width, 1), "up": up, "down": down, "tip": tip}

    bars = [bar(left + 2.0, 20.0, zeros / rows, 0.0, "weight 0")] if zeros else []
    for key, pair in sorted(shares.items()):
        low = first + key * wide
        ends = (2.0 ** (end / BINS_PER_OCTAVE) for end in (low, low + wide))
        between = "weight " + " to ".join(f"{end:.3g}" for end in ends)
        bars.append(bar(x(low), max(wide * unit - 0.6, 0.6), *pair, between))
    return {
        "bars": bars,
        "zeros": bool(zeros),
        "left": left,
        "right": right,
        "middle": middle,
        "one": x(0),
        "ticks": [
            (x(BINS_PER_OCTAVE * math.log2(value)), text) for value, text in _powers(first, last)
        ],
        "peak": _percent(peak),
        "height": height,
        "words": _spread(policy, rows, zeros, total),
    }


def _powers(first: int, last: int) -> list[tuple[float, str]]:
    """Powers of ten for the axis of weights, or powers of two if it is short."""
    base = 10.0 if last - first > 8 * BINS_PER_OCTAVE else 2.0
    log = BINS_PER_OCTAVE * math.log2(base)
    powers = range(math.ceil(first / log), math.floor(last / log) + 1)
    every = max(1, math.ceil(len(powers) / 6))
    return [(base**p, f"{base**p:.4g}") for p in powers if p % every == 0]


def _spread(policy: PolicyResult, rows: int, zeros: int, total: float) -> str:
    """Describe the histogram."""
    none = f"{_percent(zeros / rows)} of the rows have weight 0. " if zeros else ""
    if not total:
        return "Every row has weight 0: no logged ranking could have come from this policy."
    needed, half = 0.0, total / 2
    for _, count, weight in sorted(policy.histogram, reverse=True):
        if weight >= half:
            needed += count * half / weight
            break
        needed, half = needed + count, half - weight
    return f"{none}Half of the weight lies on {_percent(needed / rows)} of the rows."


def _by_place(policy: PolicyResult) -> dict[str, Any] | None:
    """ESS shares of the weights of the first places, in decades; in a box of 400 x 190."""
    found = next(
        (
            each
            for name, each in policy.estimates.items()
            if ESTIMATORS[name].kind_of_weights == "prefixes"
        ),
        None,
    )
    if found is None or found.diagnostics is None or len(found.diagnostics.by_place) < 2:
        return None
    shares = [place["ess"] / found.rows for place in found.diagnostics.by_place]
    k, left, right, top, bottom = len(shares), 52.0, 384.0, 14.0, 152.0
    smallest = min((share for share in shares if share > 0.0), default=1.0)
    decades = min(max(math.ceil(-math.log10(smallest) - 1e-9), 1), _DECADES)

    def x(place: int) -> float:
        return round(left + (right - left) * place / (k - 1), 1)

    def y(share: float) -> float:
        down = -math.log10(share) if share > 0.0 else math.inf
        return round(top + (bottom - top) * min(max(down, 0.0) / decades, 1.0), 1)

    step = max(1, math.ceil(k / 10))
    return {
        "estimator": found.estimator,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "points": [
            (
                x(place),
                y(share),
                f"first {place + 1}: ESS {_count(share * found.rows)}, {_percent(share)}",
            )
            for place, share in enumerate(shares)
        ],
        "places": [(x(place), str(place + 1)) for place in range(k) if (place + 1) % step == 0],
        "shares": [
            (y(10.0**-d), f"{100 * 10.0**-d:g} %")
            for d in range(0, decades + 1, 1 if decades < 4 else 2)
        ],
        "words": f"ESS by how many places are weighted: {_percent(shares[0])} of the rows for the"
        f" first, {_percent(shares[-1])} for all {k}.",
    }
