"""join: add rewards to a log, as a new data set.

A reward counts for a row if it names its request, an item that was displayed, and a time within the
window after the row was shown. Other rewards are counted by reason, since rows may be missing them.
While a row's window is open more rewards may come, so the row is left out, for a later join.
Impressions say when a row was shown, and how many of its places.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastrank.arraytypes import Hashes, IntArray, Mask
from fastrank.atomic import leftovers, replacing
from fastrank.eventlog.account import JoinSummary
from fastrank.eventlog.batch import LogBatch
from fastrank.eventlog.columns import integers, is_valid
from fastrank.eventlog.events import DATED
from fastrank.eventlog.filters import FOLDER
from fastrank.eventlog.hashing import text_hashes
from fastrank.eventlog.impressions import Impressions, read_impressions
from fastrank.eventlog.paths import JOIN_FILE, path_that_reads
from fastrank.eventlog.reader import JOIN_KEY, LogReader
from fastrank.eventlog.rewards import Rewards, read_rewards
from fastrank.eventlog.schema import SCHEMA_VERSION, VERSION_KEY, IdKind, schema
from fastrank.eventlog.segments import parquet_options
from fastrank.files import Paths, holds_data, listed_paths

__all__ = ["Repeats", "RewardKind", "join", "parse_time", "parse_window"]

RewardKind: TypeAlias = Literal["positives", "complete"]
Repeats: TypeAlias = Literal["max", "sum", "first"]
Advance: TypeAlias = Callable[[float], None]  # gets the share of the log that is read

_FILE = "part-{:06d}.parquet"
_FILE_ROWS = 1_000_000
_ROW_GROUP_ROWS = 65_536
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_MICRO = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def join(
    logs: Paths,
    rewards: Paths,
    output: str | os.PathLike[str],
    *,
    window: timedelta | str,
    as_of: datetime | str,
    kind: RewardKind,
    shown: Paths | None = None,
    repeats: Repeats = "max",
    skew: timedelta | str = timedelta(0),
    other_requests: bool = False,
    advance: Advance | None = None,
) -> JoinSummary:
    """Join rewards to a log, and write the result as a new data set, completely or not at all.

    Parameters
    ----------
    logs : path or iterable of paths
        As in `LogReader`; the log must not have rewards yet.
    rewards : path or iterable of paths
        Parquet, CSV or JSON Lines with columns request_id, item_id, reward, ts, and optionally
        position (the item's place, from 1). Times without a zone are UTC.
    output : path
        A directory that does not exist or holds no data (hidden files, such as .gitkeep, stay), and
        that `logs` would not read the next time.
    window : timedelta or str
        How long rewards count after a row was shown, both ends included; for example ``"24h"``. A
        row was shown at its `shown_at`, or else when it was served.
    as_of : datetime or str
        The time up to which rewards and impressions are complete. A row's window is closed if it
        ended by then; other rows are left out and counted. UTC if it names no zone; not in the
        future.
    kind : {"positives", "complete"}
        positives: the files contain what happened, such as clicks, and everything else in a closed
        window is 0. complete: they contain every observation, including zeros, and everything else
        was not observed. Positives cannot be negative.
    shown : path or iterable of paths, optional
        Impressions, in the same formats: columns request_id, displayed (number of places, from the
        top) and ts. They set `displayed` and `shown_at` of every row, whatever the log stated: the
        first time, and the most places within the window from then. A row without an impression was
        not shown: its `displayed` is 0.
    repeats : {"max", "sum", "first"}
        How to combine several rewards for one item of one row; `first` by time.
    skew : timedelta or str
        How long before its row was shown a reward may come, or an impression before the row was
        served, and still count as of that time, since the clocks of browsers and servers differ. At
        most the window.
    other_requests : bool
        Whether the files also contain rewards and impressions of requests that were not logged:
        then those of unknown requests are not counted as dropped.
    advance : callable, optional
        Called with the share of the log that is done.

    Returns
    -------
    JoinSummary

    Raises
    ------
    ValueError
        For bad arguments, `as_of` beyond this machine's clock, an output among the logs, invalid
        rewards or impressions (naming file and row), sums of them beyond float64, a log that
        already has rewards, or if nothing can be read.

    Notes
    -----
    Rewards are held in memory, about 70 bytes each, and impressions, about 40; the log is streamed.
    Places beyond `displayed` stay null. The result contains its filters, and in ``join.json`` what
    was read and left out, which `LogReader` includes in its report: if more than 5 % of the rewards
    or impressions were dropped, evaluations say so. O(rows + m log m).

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> catalog, folder = fr.Catalog([10, 20], [[1.0], [0.0]]), Path(tempfile.mkdtemp())
    >>> with LogWriter(folder / "log") as log:
    ...     ranking = catalog.rank([1.0], 2, policy=fr.Deterministic())
    ...     _ = log.append(ranking, request_id="r1", ts=datetime(2026, 1, 1, tzinfo=UTC))
    >>> _ = (folder / "clicks.csv").write_text(
    ...     "request_id,item_id,reward,ts\\nr1,20,1,2026-01-01T00:05:00Z\\n")
    >>> done = join(folder / "log", folder / "clicks.csv", folder / "joined", window="1h",
    ...             as_of="2026-01-02", kind="positives")
    >>> done.rows_written, done.rewards_used
    (1, 1)
    >>> LogReader(folder / "joined").to_table(["rewards"]).to_pylist()
    [{'rewards': [0.0, 1.0]}]
    """
    early = _parse_length("skew", skew)
    if early < timedelta(0):
        raise ValueError(f"skew: must not be negative, got {skew!r}")
    length = parse_window(window)
    if early > length:
        raise ValueError(
            f"skew: must not be longer than the window, {window!r}; got {skew!r} (a time without a"
            " zone is UTC)"
        )
    spans = _Spans.of(length, early, _past("as_of", as_of))
    _one_of("kind", kind, RewardKind)
    _one_of("repeats", repeats, Repeats)
    target = Path(output)
    if target.exists() and (not target.is_dir() or holds_data(target)):
        raise ValueError(f"output: {target} already exists")
    place = target.resolve()
    if place.is_mount():
        raise ValueError(f"output: {target} is a mount point; name a directory in it")
    given_logs = listed_paths(logs)
    around = path_that_reads(given_logs, target, _FILE.format(0))
    if around is not None:
        raise ValueError(
            f"output: {target} lies in what {around} reads: the next time every ranking would be"
            " read twice, as it was and joined; write it elsewhere"
        )
    reader = LogReader(given_logs)
    reader._keep_all = True
    identity = secrets.token_hex(8)
    given: Rewards | None = None
    found = _Found()
    summary = JoinSummary()
    impressions = None if shown is None else read_impressions(shown)
    seen = _Seen(0 if impressions is None else len(impressions))
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(place)
    with contextlib.ExitStack() as held, replacing(place) as temporary:
        held.callback(os.close, _begun(temporary))
        result = _Result(temporary, identity)
        for batch in reader:
            if given is None:
                given = read_rewards(
                    rewards, reader.kind or "int64", allow_negative=kind == "complete"
                )
                found.start(len(given))
            _refuse_rewards(batch)
            _refuse_timeless(batch)
            shown_rows = _shown(batch, impressions, seen, spans)
            joined = _joined(batch, shown_rows, given, found, summary, spans, kind, repeats)
            if joined is not None:
                result.add(joined, batch)
            if advance is not None:
                advance(reader.progress)
        if given is None:
            given = read_rewards(rewards, reader.kind or "int64", allow_negative=kind == "complete")
            found.start(len(given))
        summary.rows_read = reader.report.rows_read
        summary.rows_set_aside = reader.report.rows_set_aside
        summary.files_set_aside = reader.report.unreadable_files
        summary.files_cut = dict(reader.report.files_cut)
        _count(summary, found, given, spans, other_requests)
        if impressions is not None:
            _count_impressions(summary, seen, impressions, found, spans, other_requests)
        about = {
            "id": identity,
            "window_seconds": spans.window / 1e6,
            "skew_seconds": spans.skew / 1e6,
            "as_of": _written(spans.as_of),
            "kind": kind,
            "repeats": repeats,
            "other_requests": bool(other_requests),
            "shown": impressions is not None,
            "summary": summary.to_dict(),
            "source": reader.report.to_dict(),
        }
        result.close(reader.kind)
        (temporary / JOIN_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return summary


def _begun(directory: Path) -> int:
    """Make a directory that is locked from the start; return the descriptor that holds its lock."""
    fresh = directory.with_suffix(".new")
    fresh.mkdir()
    lock = os.open(fresh, os.O_RDONLY)
    with contextlib.suppress(OSError):  # no locks here, so leftovers stay
        fcntl.flock(lock, fcntl.LOCK_EX)
    fresh.rename(directory)
    return lock


def _remove_leftovers(target: Path) -> None:
    """Remove what killed joins left, which may fill the disk; running joins hold a lock."""
    for leftover, name in leftovers(target.parent):
        if name != target.name:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def parse_window(window: timedelta | str) -> timedelta:
    """Parse a length of time such as 90s, 30m, 24h, 7d or 2w.

    Examples
    --------
    >>> parse_window("36h")
    datetime.timedelta(days=1, seconds=43200)
    """
    length = _parse_length("window", window)
    if length <= timedelta(0):
        raise ValueError(f"window: must be longer than 0, got {window!r}")
    return length


def _parse_length(name: str, value: timedelta | str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _LENGTH.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{name}: expected a length such as 30m, 24h or 7d, got {value!r}")
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise ValueError(f"{name}: too long, got {value!r}") from None


def parse_time(name: str, moment: datetime | str) -> datetime:
    """Parse a moment; UTC if it names no zone.

    Examples
    --------
    >>> parse_time("as_of", "2026-01-02").isoformat()
    '2026-01-02T00:00:00+00:00'
    """
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.strip())
        except ValueError:
            raise ValueError(
                f"{name}: expected a time such as 2026-01-31T12:00:00Z, got {moment!r}"
            ) from None
    if not isinstance(moment, datetime):
        raise ValueError(f"{name}: expected a datetime, got {moment!r}")
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{name}: out of range in UTC, got {moment.isoformat()}") from None


def _past(name: str, moment: datetime | str) -> datetime:
    """Parse a moment that this machine's clock has reached."""
    found, now = parse_time(name, moment), datetime.now(UTC)
    if found > now:
        raise ValueError(
            f"{name}: {found.isoformat()} is beyond the clock, which says"
            f" {now.isoformat(timespec='seconds')}: rewards cannot be complete up to a time in the"
            " future (a time without a zone is UTC)"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Spans:
    """Lengths, and the time up to which rewards are complete, in microseconds (since 1970)."""

    window: int
    skew: int
    as_of: int

    @classmethod
    def of(cls, window: timedelta, skew: timedelta, as_of: datetime) -> _Spans:
        return cls(window // _MICRO, skew // _MICRO, (as_of - _EPOCH) // _MICRO)


def _written(micros: int) -> str | None:
    """A moment in ISO 8601; None if no calendar has it."""
    try:
        return (_EPOCH + micros * _MICRO).isoformat()
    except OverflowError:
        return None


class _Found:
    """The fate of each reward, in the order of `Rewards`, and when the log's rows were shown.

    `delay` is from its row's time to its own, in microseconds, if it has a row.
    """

    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min  # microseconds since 1970
    last_open: int | None = None

    def start(self, count: int) -> None:
        self.request = np.zeros(count, np.bool_)
        self.ranked = np.zeros(count, np.bool_)
        self.placed = np.zeros(count, np.bool_)
        self.not_shown = np.zeros(count, np.bool_)  # its ranking was not
        self.not_displayed = np.zeros(count, np.bool_)  # its place was not
        self.open = np.zeros(count, np.bool_)
        self.inside = np.zeros(count, np.bool_)
        self.delay = np.zeros(count, np.int64)


class _Seen:
    """The fate of each impression, in the order of `Impressions`."""

    def __init__(self, count: int) -> None:
        self.request = np.zeros(count, np.bool_)
        self.empty = np.zeros(count, np.bool_)
        self.inside = np.zeros(count, np.bool_)
        self.open = np.zeros(count, np.bool_)
        self.beyond = np.zeros(count, np.bool_)
        self.delay = np.zeros(count, np.int64)
        self.rows = 0  # rows with a closed window that were shown


@dataclass(frozen=True, slots=True)
class _Shown:
    """When each row of a batch was shown, and how many places; all (n,).

    `at` is when it was served if nothing else is stated; `places` is 0 if it was not shown.
    """

    at: IntArray
    places: IntArray
    never: Mask
    is_open: Mask
    columns: dict[str, pa.Array]


def _shown(batch: LogBatch, impressions: Impressions | None, seen: _Seen, spans: _Spans) -> _Shown:
    """From the impressions; without any, as the log states."""
    served = _micros(batch, "ts")
    if impressions is None:
        stated = batch.column("shown_at")
        at = served
        if stated is not None:
            at = np.where(is_valid(stated), _micros(batch, "shown_at"), served)
        is_open = at > spans.as_of - spans.window
        return _Shown(at, batch.lengths, batch.never_shown, is_open, {})
    ranked = _ranked(batch)
    rows, which = _pairs(batch, impressions.request_hash)
    delay = impressions.ts[which] - np.clip(served[rows], *DATED)
    displayed = impressions.displayed[which]
    empty = (displayed == 0) & (ranked[rows] > 0)
    counts = ~empty & (delay >= -spans.skew)
    latest = np.iinfo(np.int64).max
    first = np.full(len(batch), latest)
    np.minimum.at(first, rows[counts], impressions.ts[which[counts]])
    never = first == latest
    at = np.where(never, served, np.maximum(first, served))
    counts &= impressions.ts[which] - np.clip(at[rows], *DATED) <= spans.window
    places = np.zeros(len(batch), np.int64)
    np.maximum.at(places, rows[counts], displayed[counts])
    is_open = at > spans.as_of - spans.window
    seen.request[which] = True
    seen.empty[which[empty]] = True
    seen.inside[which[counts]] = True
    seen.open[which] |= is_open[rows]
    seen.beyond[which] |= displayed > ranked[rows]
    seen.delay[which] = delay
    seen.rows += int(np.count_nonzero(~never & ~is_open))
    places = np.minimum(places, ranked)
    # All zero places of an empty ranking were displayed, but 0 would mean not shown.
    said = pa.array(places, mask=~never & (ranked == 0))
    times = pa.array(at, pa.int64(), mask=never)
    columns = {"displayed": said, "shown_at": times.cast(batch.table.schema.field("ts").type)}
    return _Shown(at, places, never, is_open, columns)


def _micros(batch: LogBatch, name: str) -> IntArray:
    return integers(batch.table.column(name).cast(pa.int64()), 0)


def _ranked(batch: LogBatch) -> IntArray:
    """Number of places of each ranking, (n,), displayed or not."""
    offsets: IntArray = batch.table.column("item_ids").offsets.to_numpy().astype(np.int64)
    return np.diff(offsets)


def _count(
    summary: JoinSummary, found: _Found, rewards: Rewards, spans: _Spans, other_requests: bool
) -> None:
    number = _number
    timed = found.placed & ~found.not_shown & ~found.not_displayed
    before = timed & ~found.inside & (found.delay < 0)
    covered = (rewards.ts >= found.first - spans.skew) & (rewards.ts <= found.last + spans.window)
    summary.rewards_read = len(rewards)
    summary.rewards_unlogged = number(~found.ranked)
    summary.rewards_unlogged_requests = number(~found.request)
    summary.rewards_unlogged_in_span = number(~found.request & covered)
    summary.rewards_misplaced = number(found.ranked & ~found.placed)
    summary.rewards_not_displayed = number(found.not_displayed)
    summary.rewards_not_shown = number(found.not_shown)
    summary.rewards_outside_window = number(timed & ~found.inside)
    summary.rewards_before = number(before)
    summary.rewards_after = summary.rewards_outside_window - summary.rewards_before
    summary.rewards_of_open_rows = number(found.inside & found.open)
    used = found.inside & ~found.open
    summary.rewards_used = number(used)
    taken = -found.delay[used & (found.delay < 0)]
    summary.rewards_early = len(taken)
    if len(taken):
        summary.early_seconds_median = float(np.median(taken)) / 1e6
        summary.early_seconds_most = int(taken.max()) / 1e6
    summary.rewards_dropped = (
        summary.rewards_before
        + summary.rewards_misplaced
        + summary.rewards_not_displayed
        + summary.rewards_not_shown
        + (summary.rewards_unlogged - summary.rewards_unlogged_requests)
        + (0 if other_requests else summary.rewards_unlogged_in_span)
    )
    if summary.rewards_before:
        early = -found.delay[before]
        summary.before_seconds_median = float(np.median(early)) / 1e6
        summary.before_seconds_most = int(early.max()) / 1e6
    if found.last_open is not None:
        summary.open_until = _written(found.last_open + spans.window)


def _number(which: Mask) -> int:
    return int(np.count_nonzero(which))


def _count_impressions(
    summary: JoinSummary,
    seen: _Seen,
    impressions: Impressions,
    found: _Found,
    spans: _Spans,
    other_requests: bool,
) -> None:
    timed = seen.request & ~seen.empty & ~seen.inside
    in_span = (impressions.ts >= found.first - spans.skew) & (
        impressions.ts <= found.last + spans.window
    )
    used = seen.inside & ~seen.open
    summary.impressions_read = len(impressions)
    summary.impressions_used = _number(used)
    summary.impressions_repeated = summary.impressions_used - seen.rows
    summary.impressions_beyond = _number(used & seen.beyond)
    summary.impressions_early = _number(used & (seen.delay < 0))
    summary.impressions_of_open_rows = _number(seen.inside & seen.open)
    summary.impressions_before = _number(timed & (seen.delay < -spans.skew))
    summary.impressions_after = _number(timed & (seen.delay >= -spans.skew))
    summary.impressions_empty = _number(seen.empty)
    summary.impressions_unlogged = _number(~seen.request)
    summary.impressions_unlogged_in_span = _number(~seen.request & in_span)
    summary.impressions_dropped = summary.impressions_before + (
        0 if other_requests else summary.impressions_unlogged_in_span
    )


def _refuse_rewards(batch: LogBatch) -> None:
    rewards = batch.table.column("rewards")
    if rewards.null_count < len(rewards):
        row = int(np.flatnonzero(rewards.is_valid().to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"{batch.source}: row {batch.rows[row]}: already has rewards; join the original log"
        )


def _refuse_timeless(batch: LogBatch) -> None:
    served = batch.table.column("ts").cast(pa.int64()).to_numpy()
    if (served == 0).any():
        row = batch.rows[int(np.flatnonzero(served == 0)[0])]
        raise ValueError(
            f"{batch.source}: row {row}: ts: 1970-01-01, which stands for no time, so its window is"
            " unknown; name the column of times when making the log (`time`)"
        )


def _joined(
    batch: LogBatch,
    shown: _Shown,
    rewards: Rewards,
    found: _Found,
    summary: JoinSummary,
    spans: _Spans,
    kind: RewardKind,
    repeats: Repeats,
) -> pa.RecordBatch | None:
    """The rows of a batch with a closed window, with their rewards; None if there are none."""
    n, width = batch.item_ids.shape
    is_open = shown.is_open
    if n:
        found.first = min(found.first, int(_micros(batch, "ts").min()))
        found.last = max(found.last, int(shown.at.max()))
    if is_open.any():
        found.last_open = max(int(shown.at[is_open].max()), found.last_open or -(2**63))
    rows, which = _pairs(batch, rewards.request_hash)
    found.request[which] = True
    places = _places(batch, rewards, rows, which)
    ranked = places >= 0
    found.ranked[which[ranked]] = True
    stated = rewards.position[which]
    placed = ranked & ((stated == 0) | (stated == places + 1))
    found.placed[which[placed]] = True
    # Places not yet displayed may be while the window is open.
    closed_rows = placed & ~is_open[rows]
    never = closed_rows & shown.never[rows]
    hidden = closed_rows & ~never & (places >= shown.places[rows])
    found.not_shown[which[never]] = True
    found.not_displayed[which[hidden]] = True
    delay = rewards.ts[which] - np.clip(shown.at[rows], *DATED)
    found.delay[which] = delay
    inside = placed & ~never & ~hidden & (delay >= -spans.skew) & (delay <= spans.window)
    found.inside[which[inside]] = True
    found.open[which] |= is_open[rows]

    used = inside & ~is_open[rows]
    rows, which, places = rows[used], which[used], places[used]
    order = np.lexsort((which, rewards.ts[which], rows * width + places))
    rows, which, places = rows[order], which[order], places[order]
    cells = rows * width + places
    begins = np.ones(len(cells), np.bool_)
    begins[1:] = cells[1:] != cells[:-1]
    firsts = np.flatnonzero(begins)
    values = rewards.reward[which]
    if repeats == "first" or not len(cells):
        merged = values[firsts]
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            merged = (np.maximum if repeats == "max" else np.add).reduceat(values, firsts)
    beyond = np.flatnonzero(~np.isfinite(merged))
    if beyond.size:
        row = batch.rows[rows[firsts[beyond[0]]]]
        raise ValueError(
            f"{batch.source}: row {row}: the sum of its rewards is outside the float64 range"
        )
    summary.rewards_repeated += len(cells) - len(firsts)
    closed = ~is_open
    summary.rows_open += int(np.count_nonzero(is_open))
    if not closed.any():
        return None

    at_places = np.arange(width) < shown.places[:, None]
    filled = np.where(at_places, 0.0 if kind == "positives" else np.nan, np.nan)
    filled.reshape(-1)[cells[firsts]] = merged
    latest = shown.at.copy()  # no reward can come before it was shown, whatever a clock says
    np.maximum.at(latest, rows, rewards.ts[which])
    has_reward = np.zeros(n, np.bool_)
    has_reward[rows] = True
    summary.rows_with_reward += int(np.count_nonzero(has_reward & closed))
    summary.rows_written += int(np.count_nonzero(closed))
    summary.rows_not_shown += int(np.count_nonzero(closed & shown.never))

    table = batch.table
    lengths = _ranked(batch)
    own = np.arange(width) < lengths[:, None]
    flat = filled[own]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    new = {
        "rewards": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(flat, pa.float64(), mask=np.isnan(flat))
        ),
        "reward_kind": pa.repeat(pa.scalar(kind), n),
        "reward_ts": pa.array(latest, pa.int64(), mask=~has_reward).cast(
            table.schema.field("reward_ts").type
        ),
        **shown.columns,
    }
    columns = [new.get(f.name, c) for f, c in zip(table.schema, table.columns, strict=True)]
    whole = pa.RecordBatch.from_arrays(columns, schema=table.schema)
    return whole if closed.all() else whole.filter(pa.array(closed))


def _pairs(batch: LogBatch, requests: Hashes) -> tuple[IntArray, IntArray]:
    """Pairs of rows of the batch and events of the same request: two arrays of one length.

    `requests` are those of the events, (m, 2), sorted by the first column.
    """
    first, second = batch.request_hash[:, 0], batch.request_hash[:, 1]
    start = np.searchsorted(requests[:, 0], first, side="left")
    end = np.searchsorted(requests[:, 0], first, side="right")
    counts = end - start
    rows = np.repeat(np.arange(len(batch)), counts)
    which = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    which = which + np.arange(len(which))
    same = requests[which, 1] == second[rows]
    return rows[same], which[same]


def _places(
    batch: LogBatch,
    rewards: Rewards,
    rows: IntArray,
    which: IntArray,
) -> IntArray:
    """Place of each reward's item in its row's ranking, from 0; -1 if it is not in it."""
    width = batch.item_ids.shape[1]
    if batch.item_ids.dtype.kind == "i":
        same = batch.item_ids[rows] == rewards.item[which, None]
    else:
        # Only rankings that some reward names.
        asked, at = np.unique(rows, return_inverse=True)
        texts = pa.array(batch.item_ids[asked].reshape(-1).tolist(), pa.string())
        hashes = text_hashes(texts).reshape(len(asked), width, 2)
        same = (hashes[at] == rewards.item[which][:, None, :]).all(axis=2)
    same &= np.arange(width) < _ranked(batch)[rows][:, None]
    found: IntArray = np.where(same.any(axis=1), same.argmax(axis=1) if width else -1, -1)
    return found


class _Result:
    """The new data set: files of up to a million rows of one schema, and their filters."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._metadata = {
            VERSION_KEY: str(SCHEMA_VERSION).encode(),
            JOIN_KEY: identity.encode(),
        }
        self._writer: pq.ParquetWriter | None = None
        self._columns: pa.Schema | None = None
        self._files = 0
        self._rows = 0
        self._waiting: list[pa.RecordBatch] = []
        self._n_waiting = 0

    def add(self, rows: pa.RecordBatch, batch: LogBatch) -> None:
        self._carry_filters(rows, batch)
        rows = rows.replace_schema_metadata(self._metadata)
        if self._columns is not None and not rows.schema.equals(self._columns):
            self._close_file()
        self._columns = rows.schema
        self._waiting.append(rows)
        self._n_waiting += rows.num_rows
        if self._n_waiting >= _ROW_GROUP_ROWS:
            self._flush()
        if self._rows >= _FILE_ROWS:
            self._close_file()

    def _flush(self) -> None:
        if not self._waiting or self._columns is None:
            return
        if self._writer is None:
            path = self._directory / _FILE.format(self._files)
            self._files += 1
            options = parquet_options(self._columns)
            self._writer = pq.ParquetWriter(path, self._columns, **options)
        table = pa.Table.from_batches(self._waiting, self._columns)
        self._writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
        self._rows += self._n_waiting
        self._waiting, self._n_waiting = [], 0

    def _close_file(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0

    def close(self, kind: IdKind | None) -> None:
        """Finish the files; a result without rows is still a readable log."""
        self._close_file()
        if not self._files:
            columns = schema(kind or "int64").with_metadata(self._metadata)
            pq.write_table(columns.empty_table(), self._directory / _FILE.format(0))

    def _carry_filters(self, rows: pa.RecordBatch, batch: LogBatch) -> None:
        if batch._folder is None:
            return
        named = rows.column("filter_id")
        for column, suffix in (
            (pc.struct_field(named, "exclude"), ".parquet"),
            (pc.struct_field(named, "allow"), ".parquet"),
            (rows.column("bias_id"), ".npy"),
            (pc.struct_field(rows.column("rules"), "id"), ".json"),
        ):
            if column.null_count == len(column):
                continue
            for name in pc.unique(column).drop_null().to_pylist():
                source = batch._folder / FOLDER / f"{name}{suffix}"
                target = self._directory / FOLDER / source.name
                if not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(source, target)


def _one_of(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        names = ", ".join(get_args(choices))
        raise ValueError(f"{name}: expected one of {names}; got {value!r}")
