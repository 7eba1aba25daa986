"""The results of a join: its summary, the account stored beside the result, and messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["JoinSummary", "dropped_of", "read_account", "told", "told_of"]

_LARGEST = 2**53  # largest count
_DEEPEST = 20  # nested lists in an account
_CLOCKS = 900.0  # seconds: a larger difference means a wrong clock, or times in another zone
_ZONES = "a time that says no zone is taken for UTC"


@dataclass(slots=True, repr=False)
class JoinSummary:
    """The results of a join.

    Each reward has one fate: it is used, or it belongs to a row left out, came before its ranking
    or after the window, or names a ranking never shown, a place not displayed, another position, an
    item not ranked, or a request that the log does not contain. Each impression likewise: it is
    used, or it belongs to a row left out, came before its ranking or after the window, shows no
    place, or names a request that the log does not contain.

    Attributes
    ----------
    rows_read, rows_set_aside : int
        Rows of the log; join.json in the result has the reasons for rows set aside, with the whole
        report.
    rows_open : int
        Rows left out because their window is still open at `as_of`.
    open_until : str or None
        When the last open window closes, in ISO 8601, UTC; None if none is open.
    rows_written, rows_with_reward : int
        Rows of the result; the latter have at least one reward from the files.
    rows_not_shown : int
        Rows written that were never shown (`displayed` is 0): they earn nothing, and evaluations
        leave them out.
    rewards_read, rewards_used : int
        Rewards in the files, and those used in the result (before repeats are merged).
    rewards_repeated : int
        Of those used, how many repeat another one for the same item of the same row.
    rewards_early : int
        Of those used, how many came before their row was served, by at most `skew`.
    early_seconds_median, early_seconds_most : float or None
        How early these were; None if there are none.
    rewards_of_open_rows : int
        Rewards of rows left out.
    rewards_outside_window : int
        The sum of `rewards_before` and `rewards_after`.
    rewards_before : int
        Rewards from before the row was served, by more than `skew`.
    before_seconds_median, before_seconds_most : float or None
        How early these were; None if there are none.
    rewards_after : int
        Rewards from after the window.
    rewards_unlogged, rewards_unlogged_requests : int
        Pairs of request and item that the log does not contain: there is no such request (or its
        row is set aside), or the item was not ranked there. The second figure counts those without
        such a request.
    rewards_unlogged_in_span : int
        Of those without such a request, how many fall within the log's time: from its first row to
        the end of its last row's window.
    rewards_misplaced : int
        Rewards whose item was ranked, but not in the position that the reward states.
    rewards_not_displayed : int
        Rewards whose item was ranked, at a place beyond those displayed.
    rewards_not_shown : int
        Rewards of rankings that were never shown.
    rewards_dropped : int
        Rewards that should have found their ranking, but did not: `rewards_before`,
        `rewards_misplaced`, `rewards_not_displayed`, `rewards_not_shown`, items not ranked, and,
        unless the files contain `other_requests`, `rewards_unlogged_in_span`.
    impressions_read, impressions_used : int
        Impressions in the files, and those used in the result.
    impressions_repeated, impressions_beyond, impressions_early : int
        Of those used: further ones of a row; those that state more places than the ranking has, of
        which all then count as displayed; those before the row was served, by at most `skew`.
    impressions_of_open_rows : int
        Impressions of rows left out.
    impressions_before, impressions_after : int
        From before the row was served, by more than `skew`; from after the window that the first
        one opened.
    impressions_empty : int
        Impressions without a displayed place, of a ranking that has some: nothing was shown.
    impressions_unlogged, impressions_unlogged_in_span : int
        Impressions of requests that the log does not contain, and how many fall within the log's
        time.
    impressions_dropped : int
        Impressions that should have found their ranking, which now counts as not shown:
        `impressions_before` and, unless the files contain `other_requests`,
        `impressions_unlogged_in_span`.
    files_set_aside, files_cut : dict of str to str
        Files of the log that could not be read, or not to their end, as in `ReadReport`.
    """

    rows_read: int = 0
    rows_set_aside: int = 0
    rows_open: int = 0
    open_until: str | None = None
    rows_written: int = 0
    rows_with_reward: int = 0
    rows_not_shown: int = 0
    rewards_read: int = 0
    rewards_used: int = 0
    rewards_repeated: int = 0
    rewards_early: int = 0
    early_seconds_median: float | None = None
    early_seconds_most: float | None = None
    rewards_of_open_rows: int = 0
    rewards_outside_window: int = 0
    rewards_before: int = 0
    before_seconds_median: float | None = None
    before_seconds_most: float | None = None
    rewards_after: int = 0
    rewards_unlogged: int = 0
    rewards_unlogged_requests: int = 0
    rewards_unlogged_in_span: int = 0
    rewards_misplaced: int = 0
    rewards_not_displayed: int = 0
    rewards_not_shown: int = 0
    rewards_dropped: int = 0
    impressions_read: int = 0
    impressions_used: int = 0
    impressions_repeated: int = 0
    impressions_beyond: int = 0
    impressions_early: int = 0
    impressions_of_open_rows: int = 0
    impressions_before: int = 0
    impressions_after: int = 0
    impressions_empty: int = 0
    impressions_unlogged: int = 0
    impressions_unlogged_in_span: int = 0
    impressions_dropped: int = 0
    files_set_aside: dict[str, str] = field(default_factory=dict)
    files_cut: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"JoinSummary({self.rows_written} of {self.rows_read} rows written,"
            f" {self.rewards_used} of {self.rewards_read} rewards used, {self.rewards_dropped}"
            f" dropped)"
        )

    @property
    def dropped_share(self) -> float:
        """Share of `rewards_dropped` among these and the rewards used; in [0, 1]."""
        among = self.rewards_dropped + self.rewards_used + self.rewards_of_open_rows
        return self.rewards_dropped / among if among else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON."""
        return asdict(self)


_COUNTS = [each.name for each in fields(JoinSummary) if each.default == 0]
_LOST = ("before", "unlogged", "misplaced", "not_displayed", "not_shown")
_FATES = ("used", "of_open_rows", "after", *_LOST)
_SEEN = ("used", "of_open_rows", "before", "after", "empty", "unlogged")


def read_account(file: Path, identity: str) -> dict[str, Any]:
    """Read the join.json of a join; only its `id` if there is none, or it is another join's.

    The form of the result is checked: counts are counts, numbers are finite, and everything can be
    written as JSON again.

    Raises
    ------
    ValueError
        If it cannot be read, or contradicts itself.
    """
    try:
        account = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {"id": identity}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not an account of a join: {' '.join(str(error).split())}") from None
    if not _is_sound(account):
        raise ValueError("not an account of a join: its numbers contradict each other")
    return account if account["id"] == identity else {"id": identity}


def _is_sound(account: Any) -> bool:
    if not isinstance(account, dict) or not _is_plain(account) or not _is_text(account.get("id")):
        return False
    source, summary = account.get("source", {}), account.get("summary", {})
    if not isinstance(source, dict) or not isinstance(summary, dict):
        return False
    lengths = [
        summary.get(f"{which}_seconds_{name}")
        for which in ("before", "early")
        for name in ("median", "most")
    ]
    if not (
        _is_count(source.get("rows_set_aside", 0))
        and _is_table(source.get("rows_lost", {}), _is_count)
        and _is_table(source.get("files_set_aside", {}), _is_text)
        and all(_is_count(summary.get(name, 0)) for name in _COUNTS)
        and all(map(_is_length, lengths))
    ):
        return False
    fates = {fate: summary.get(f"rewards_{fate}", 0) for fate in _FATES}
    seen = {fate: summary.get(f"impressions_{fate}", 0) for fate in _SEEN}
    return bool(
        sum(fates.values()) <= summary.get("rewards_read", 0)
        and summary.get("rewards_dropped", 0) <= sum(fates[fate] for fate in _LOST)
        and summary.get("rewards_early", 0) <= fates["used"]
        and sum(seen.values()) <= summary.get("impressions_read", 0)
        and summary.get("impressions_dropped", 0) <= seen["before"] + seen["unlogged"]
        and summary.get("rows_not_shown", 0) <= summary.get("rows_written", 0)
    )


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value of JSON is safe for any JSON, page or sum."""
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if value is None:
        return True
    if depth >= _DEEPEST:
        return False
    if isinstance(value, dict):
        parts: list[object] = [*value, *value.values()]
    else:
        parts = value if isinstance(value, list) else []
    return all(_is_plain(part, depth + 1) for part in parts)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is_length(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0.0 <= value < math.inf)


def _is_table(value: object, kind: Any) -> bool:
    return isinstance(value, dict) and all(map(kind, value.values()))


def dropped_of(account: Mapping[str, Any], what: str = "rewards") -> tuple[int, int]:
    """Rewards, or impressions, that a join dropped, and those that it judged, from its account.

    (0, 0) if the account is too old to say.
    """
    summary = account.get("summary", {})
    if f"{what}_dropped" not in summary:
        return 0, 0
    lost: int = summary[f"{what}_dropped"]
    found = summary.get(f"{what}_used", 0) + summary.get(f"{what}_of_open_rows", 0)
    return lost, lost + found


def told_of(account: Mapping[str, Any]) -> list[str]:
    """Messages about missing rewards, from an account as `read_account` returns it."""
    if "summary" not in account:
        return ["what joining its rewards left out is not known: join.json is lost or damaged"]
    summary = account["summary"]
    found = told(summary, other_requests=account.get("other_requests") is True)
    if summary.get("rows_written", 0) and not summary.get("rewards_read", 0):
        return ["there were no rewards in the files that were joined", *found]
    return found


def told(summary: Mapping[str, Any], *, other_requests: bool = False) -> list[str]:
    """Messages about rewards that were not used, or only thanks to a long skew, with advice.

    Parameters
    ----------
    summary : mapping
        As returned by `JoinSummary.to_dict`; absent counts are 0.
    other_requests : bool
        Whether the files were said to contain rewards of requests that were not logged.
    """
    count: dict[str, int] = {name: summary.get(name, 0) for name in _COUNTS}
    read, unlogged = count["rewards_read"], count["rewards_unlogged_requests"]
    in_span = count["rewards_unlogged_in_span"]
    found = [
        (count["rewards_before"], f"came before their ranking{_early(summary)}"),
        (
            in_span,
            "name requests that the log does not hold"
            + (
                ""
                if other_requests
                else ": are ids written alike, in case too? If these were never logged,"
                " join with --other-requests"
            ),
        ),
        (
            unlogged - in_span,
            "name requests that the log does not hold, at times that it does not cover"
            if "rewards_unlogged_in_span" in summary
            else "name requests that the log does not hold",
        ),
        (count["rewards_unlogged"] - unlogged, "are of items that were not ranked there"),
        (count["rewards_misplaced"], "are of items that were ranked in another position"),
        (
            count["rewards_not_displayed"],
            "are of items beyond the places that were displayed: do the impressions say how many?",
        ),
        (
            count["rewards_not_shown"],
            "are of rankings that were never shown: are impressions missing?",
        ),
        (
            count["rewards_after"],
            "came after the window"
            + (f"; {_ZONES}" if count["rows_written"] and not count["rewards_used"] else ""),
        ),
    ]
    if "rewards_before" not in summary:
        found.append((count["rewards_outside_window"], "came before their ranking or too late"))
    most = summary.get("early_seconds_most") or 0.0
    if most > _CLOCKS:
        median = summary.get("early_seconds_median") or 0.0
        what = f"came before their ranking{_amount(median, most)}, and count by --skew"
        found.append((count["rewards_early"], f"{what}: no clocks differ so; {_ZONES}"))
    lines = [f"{number:,} of {read:,} rewards {what}" for number, what in found if number > 0]
    return [*lines, *_told_impressions(count, other_requests)]


def _told_impressions(count: Mapping[str, int], other_requests: bool) -> list[str]:
    """Messages about impressions, and about rankings that lack them."""
    unlogged, in_span = count["impressions_unlogged"], count["impressions_unlogged_in_span"]
    nowhere = "name requests that the log does not hold"
    found = [
        (
            count["impressions_before"],
            "came before their ranking, which is not shown by them: if clocks differ, join with"
            " --skew",
        ),
        (
            in_span,
            nowhere
            + (
                "" if other_requests else "; if these were never logged, join with --other-requests"
            ),
        ),
        (unlogged - in_span, f"{nowhere}, at times that it does not cover"),
        (count["impressions_empty"], "say that no place was displayed, and count for none"),
        (
            count["impressions_beyond"],
            "say more places than their ranking has: all of it was displayed",
        ),
        (count["impressions_after"], "came after the window that the first one opened"),
    ]
    read = count["impressions_read"]
    return [f"{number:,} of {read:,} impressions {what}" for number, what in found if number > 0]


def _early(summary: Mapping[str, Any]) -> str:
    median, most = summary.get("before_seconds_median"), summary.get("before_seconds_most")
    if median is None or most is None:
        return ""
    amount = _amount(median, most)
    if most <= _CLOCKS:
        return f"{amount}: if clocks differ, join with --skew {max(math.ceil(most), 1)}s"
    if median <= _CLOCKS:
        return f"{amount}: if clocks differ, --skew takes such in"
    return f"{amount}: {_ZONES}"


def _amount(median: float, most: float) -> str:
    return f", {_length(median)} in the median, up to {_length(most)}"


def _length(seconds: float) -> str:
    for unit, name in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
