"""What a run must reach; the exit code depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from histogram import Histogram
from recorder import Recorder, Series, Stage

__all__ = ["BASE", "Gates", "Verdict", "pooled", "ratio", "stage_label"]

BASE = "deterministic"  # what the other types are compared with, where nothing else is said


_WIDE = 1.5  # the upper end of a ratio's interval over the lower one, beyond which it says nothing


@dataclass(frozen=True)
class Verdict:
    """One requirement, and whether it was met."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Gates:
    """Limits; None: there is none.

    Attributes
    ----------
    p99_ms : float, optional
        Of every type of request in every stage.
    error_share : float
        Of all requests of a stage.
    ratios : dict
        By inference type: p50 over that of `base`, in a closed loop. A gate is missed where all of
        the ratio's 95 % interval is above it.
    base : str
    drift : float, optional
        p50 of the last stage over that of the first, for a soak; likewise.
    late_ms : float, optional
        p99 of how late an open loop sends. Latencies hold that, too; past this limit they say more
        about the client than about the server.
    requests : int
        So many answers at least; a run that sent nothing has shown nothing.
    """

    p99_ms: float | None = None
    error_share: float = 0.0
    ratios: Mapping[str, float] = field(default_factory=dict)
    base: str = BASE
    drift: float | None = None
    late_ms: float | None = None
    requests: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self, recorder: Recorder, rate: float | None = None) -> list[Verdict]:
        """Every requirement of a run; `rate` as for `stage_label`."""
        stages = recorder.stages
        answered = sum(s.latency.count for stage in stages.values() for s in stage.series.values())
        verdicts = [
            Verdict(
                answered >= self.requests,
                f"{answered:,} answers, at least {self.requests:,} wanted",
            )
        ]
        for name, stage in stages.items():
            where = f" at {stage_label(name, rate)}" if name else ""
            everything = pooled(stage)
            share = everything.failed / everything.sent if everything.sent else 0.0
            verdicts.append(
                Verdict(
                    share <= self.error_share,
                    f"errors{where}: {share:.3%} of {everything.sent:,},"
                    f" limit {self.error_share:.3%}{_reasons(everything)}",
                )
            )
            if self.p99_ms is not None:
                verdicts.append(_p99_verdict(stage, self.p99_ms, where))
            for kind, limit in self.ratios.items():
                verdicts.append(_ratio_verdict(stage, kind, self.base, limit, where))
            if rate is not None and self.late_ms is not None and everything.late.count:
                late = 1e3 * everything.late.percentile(99)
                verdicts.append(
                    Verdict(
                        late <= self.late_ms,
                        f"sent late{where}: p99 {late:.3g} ms, limit {self.late_ms:g} ms",
                    )
                )
        if self.drift is not None:
            verdicts.append(_drift_verdict(list(stages.values()), self.drift))
        return verdicts


def stage_label(name: str, rate: float | None) -> str:
    """A stage in words; `rate` is how often a second each user of an open loop asks."""
    if not name.isdigit():
        return name
    if rate is not None:
        return f"{rate * int(name):g} requests/s"
    return f"{name} user{'s' if name != '1' else ''}"


def pooled(stage: Stage) -> Series:
    """All types of request of a stage."""
    together = Series()
    for series in stage.series.values():
        together.merge(series)
    return together


def ratio(of: Histogram, to: Histogram) -> tuple[float, float, float] | None:
    """p50 over p50, with a 95 % interval; None where there is nothing to compare.

    The interval's ends are those of either median apart, so that it is wider than it need be.
    """
    if not of.count or not to.count or not to.percentile(50):
        return None
    (low, high), (base_low, base_high) = of.interval(50), to.interval(50)
    return (
        of.percentile(50) / to.percentile(50),
        low / base_high,
        high / base_low if base_low else float("inf"),
    )


def _p99_verdict(stage: Stage, limit: float, where: str) -> Verdict:
    found = {
        kind: 1e3 * series.latency.percentile(99)
        for kind, series in stage.series.items()
        if series.latency.count
    }
    if not found:
        return Verdict(False, f"p99{where}: nothing was answered")
    worst = max(found, key=lambda kind: found[kind])
    return Verdict(
        found[worst] <= limit,
        f"p99{where}: at most {found[worst]:.3g} ms ({worst}), limit {limit:g} ms",
    )


def _ratio_verdict(stage: Stage, kind: str, base: str, limit: float, where: str) -> Verdict:
    of, to = stage.series.get(kind), stage.series.get(base)
    found = ratio(of.latency, to.latency) if of is not None and to is not None else None
    if found is None:
        return Verdict(False, f"p50 of {kind} / {base}{where}: not both were answered")
    return _within(f"p50 of {kind} / {base}{where}", found, limit)


def _drift_verdict(stages: list[Stage], limit: float) -> Verdict:
    if len(stages) < 2:
        return Verdict(False, "drift: a soak of at least two stages is wanted")
    first, last = pooled(stages[0]).latency, pooled(stages[-1]).latency
    found = ratio(last, first)
    if found is None:
        return Verdict(False, "drift: the first or the last stage has no answers")
    return _within("drift: p50 of the last stage / first", found, limit)


def _within(what: str, found: tuple[float, float, float], limit: float) -> Verdict:
    """Missed where the whole interval is above the limit, or is too wide to say so."""
    value, low, high = found
    text = f"{what}: {value:.3f} ({low:.3f} to {high:.3f}), limit {limit:g}"
    if high > _WIDE * low:
        return Verdict(False, f"{text}: too few answers to tell")
    return Verdict(low <= limit, text)


def _reasons(series: Series) -> str:
    if not series.errors:
        return ""
    most = sorted(series.errors.items(), key=lambda item: -item[1])[:3]
    return ": " + "; ".join(f"{count:,} {reason}" for reason, count in most)
