"""The rows of one experiment in a log, and when each of its arms ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Hashes, IntArray, Mask
from fastrank.eventlog import LogBatch, LogReader, ReadReport, Stratum
from fastrank.inputs import shown
from fastrank.ope.queries import ranked_candidates
from fastrank.ope.ratio import SampleRatio, sample_ratio
from fastrank.ope.shares import Shares, SharesGiven

__all__ = ["MOST_CELLS", "MOST_STRATA", "Cell", "ExperimentLog", "Log", "Period", "check_log"]

MOST_CELLS = 1000  # arms in periods; users and sums are kept for each
MOST_STRATA = 1000  # of an arm in a period: models that replaced each other
_NAMED = 10  # most names in a message
_WAITING = 1 << 16  # hashes of users


class Log(Protocol):
    """What evaluations and audits read: a `LogReader`, or the rows of one experiment."""

    @property
    def report(self) -> ReadReport:
        """Complete after the last batch."""
        ...

    @property
    def strata(self) -> Sequence[Stratum]:
        """Grows while reading; `LogBatch.stratum` indexes it."""
        ...

    def __iter__(self) -> Iterator[LogBatch]: ...

    def survey(self) -> tuple[int, int]:
        """Upper limits of the number of rows and of the length of the longest ranking."""
        ...


def check_log(log: object) -> None:
    """Check that a log can be read; a ValueError says what to pass."""
    if all(hasattr(log, name) for name in ("survey", "strata", "report")):
        return
    got = shown(log)
    if isinstance(log, str | Path):
        raise ValueError(f"log: expected a LogReader, got {got}; pass LogReader({got})")
    raise ValueError(
        f"log: expected a LogReader, got {got}, a {type(log).__name__}; tables of another making"
        " are for evaluate_table, or from_table"
    )


class Cell:
    """One arm during a period of constant shares.

    Attributes
    ----------
    rows : int
    first, last : datetime64[us]
        When its first and last row were served.
    without_user : int
        Rows that name no user.
    strata : dict of Stratum to None
        The strata of its rows, without fallbacks; at most `MOST_STRATA` + 1 are kept.
    rules : set of str or None
        Ids of the rules of its rows; None is among them if some rows have none.
    has_candidates : bool
        Whether some of its rows ranked only candidates.
    """

    def __init__(self) -> None:
        self.rows = self.without_user = 0
        self.first = self.last = np.datetime64("NaT", "us")
        self.strata: dict[Stratum, None] = {}
        self.rules: set[str | None] = set()
        self.has_candidates = False
        self._users: list[Hashes] = []
        self._settled = 0  # distinct users in the first of these arrays

    def add(self, batch: LogBatch, strata: Sequence[Stratum]) -> None:
        """Add its rows of a log with these strata."""
        times = _times(batch)
        self.first = np.fmin(self.first, times.min())
        self.last = np.fmax(self.last, times.max())
        self.rows += len(batch)
        self.without_user += int(np.count_nonzero(~batch.is_given("user_id")))
        self.has_candidates |= bool(ranked_candidates(batch).any())
        for index in np.unique(batch.stratum).tolist():
            if len(self.strata) <= MOST_STRATA and not strata[index].is_fallback:
                self.strata[strata[index]] = None
        self.rules |= batch.rules_named
        self._users.append(np.unique(batch.user_hash))
        if sum(map(len, self._users)) > max(_WAITING, 2 * self._settled):
            self._settled = len(self.users)

    @property
    def users(self) -> Hashes:
        """Hashes of its users (m,), each once."""
        if len(self._users) > 1:
            self._users = [np.unique(np.concatenate(self._users))]
        return self._users[0] if self._users else np.empty(0, np.uint64)


@dataclass(slots=True)
class Period:
    """A period of constant shares: one revision, between two changes of shares.

    Attributes
    ----------
    name : str
        Name for people.
    shares : dict of str to float, or None
        The shares in force, if they are stated.
    arms : dict of str to Cell
        The arms that have rows.
    """

    name: str
    shares: dict[str, float] | None
    arms: dict[str, Cell] = field(default_factory=dict)

    def both(self, arm: str, other: str) -> tuple[np.datetime64, np.datetime64] | None:
        """The first and last time at which two arms ran; None if they never did."""
        if arm not in self.arms or other not in self.arms:
            return None
        cells = self.arms[arm], self.arms[other]
        first, last = max(each.first for each in cells), min(each.last for each in cells)
        return (first, last) if first <= last else None


class ExperimentLog:
    """The rows of one experiment, read as a separate log.

    Parameters
    ----------
    log : LogReader
        Needs the columns `experiment`, `arm` and `revision`; it is read once to find the arms.
    name : str, optional
        Name of the experiment; by default the only one of the log.
    shares : mapping, optional
        From arms' names to their shares of users (or of requests, if those were assigned); or from
        revisions, or datetimes since when they hold, to such mappings. Shares are relative: 9 and 1
        mean 0.9 and 0.1.

    Attributes
    ----------
    name : str
    periods : list of Period
        Periods of constant shares, in order.
    arms : list of str
        In alphabetical order, including those of `shares`.
    rows_without_arm : int
        Rows of the experiment that state no arm; they are left out.
    has_row_weights : bool

    Raises
    ------
    ValueError
        If the log has no such experiment, or several and no name is given; if it has an arm that
        `shares` do not mention.

    Notes
    -----
    Memory is that of the reader, plus 8 bytes per user, arm and period.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> catalog, folder = fr.Catalog([10, 20], [[1.0], [0.0]]), tempfile.mkdtemp()
    >>> with LogWriter(folder) as log:
    ...     for i, arm in enumerate(["control", "new", "control"]):
    ...         ranking = catalog.rank([1.0], 1, policy=fr.Uniform(), seed=i)
    ...         _ = log.append(ranking, query=[1.0], experiment="e", arm=arm, rewards=[0.0])
    >>> found = ExperimentLog(LogReader(folder), shares={"control": 1, "new": 1})
    >>> found.name, found.arms, found.rows
    ('e', ['control', 'new'], 3)
    """

    def __init__(
        self, log: LogReader, name: str | None = None, *, shares: SharesGiven | None = None
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"experiment: expected a name, got {name!r}")
        self._log = log
        self._shares = Shares(shares)
        self._codes: dict[tuple[str | None, int], int] = {}
        self.periods: list[Period] = []
        self.rows_without_arm = 0
        self.has_row_weights = False
        names: Counter[str] = Counter()
        found: list[str] = [] if name is None else [name]
        for batch in log:
            codes, texts = batch.texts("experiment")
            for code, text in enumerate(texts):
                if text is not None:
                    names[text] += int(np.count_nonzero(codes == code))
            if name is None and len(names) == 1:
                found = [*names]
            if name is None and len(names) > 1:
                break
            if found and found[0] in texts:
                self._survey(batch.where(codes == texts.index(found[0])))
        if name is None and len(names) != 1:
            said = "none" if not names else f"several, {_listed([*names])}: name one"
            raise ValueError(f"experiment: the log has {said}")
        if not names[found[0]]:
            said = f"only {_listed([*names])}" if names else "none"
            raise ValueError(f"experiment: the log has none called {found[0]!r}; it has {said}")
        self.name = found[0]
        if not self.periods:
            raise ValueError(f"experiment: {self.name!r}: no row says which arm it is of")
        order = np.argsort([min(c.first for c in each.arms.values()) for each in self.periods])
        self._order = np.argsort(order)  # alphabetical place of each arm, in order of appearance
        self.periods = [self.periods[j] for j in order.tolist()]
        for each in self.periods:
            unknown = [] if each.shares is None else sorted(each.arms.keys() - each.shares.keys())
            if unknown:
                raise ValueError(
                    f"shares: the log has an arm {unknown[0]!r} ({each.name}), and they are of"
                    f" {_listed([*(each.shares or {})])}"
                )
        self.arms = sorted(
            {arm for each in self.periods for arm in (*each.arms, *(each.shares or ()))}
        )

    @property
    def report(self) -> ReadReport:
        """The reader's."""
        return self._log.report

    @property
    def strata(self) -> list[Stratum]:
        """The reader's."""
        return self._log.strata

    @property
    def rows(self) -> int:
        """Whether any arm has row weights."""
        return sum(cell.rows for each in self.periods for cell in each.arms.values())

    def survey(self) -> tuple[int, int]:
        """The reader's survey: rows of other experiments are included."""
        return self._log.survey()

    def __iter__(self) -> Iterator[LogBatch]:
        for batch in self._log:
            codes, texts = batch.texts("experiment")
            if self.name in texts:
                part = batch.where(codes == texts.index(self.name))
                periods, arms = self.cells(part)
                known = (periods >= 0) & (arms >= 0)
                yield part if known.all() else part.where(known)

    def cells(self, batch: LogBatch) -> tuple[IntArray, IntArray]:
        """For each row, its indices into `periods` and `arms`; (n,) each.

        -1 if a row has none, or did not exist when the log was first read.
        """
        at = {arm: j for j, arm in enumerate(self.arms)}
        codes, texts = batch.texts("arm")
        arms = np.array([*(at.get(text, -1) for text in texts), -1], np.int64)
        periods = np.full(len(batch), -1, np.int64)
        for key, rows in self._keys(batch):
            if key in self._codes:
                periods[rows] = self._order[self._codes[key]]
        return periods, arms[codes]

    def both_ran(self, batch: LogBatch, periods: IntArray, arm: str, other: str) -> Mask:
        """Rows (n,) of times at which two arms ran, given their `periods`."""
        times = _times(batch)
        found = np.zeros(len(batch), np.bool_)
        for j in np.unique(periods).tolist():
            span = self.periods[j].both(arm, other)
            if span is not None:
                found |= (periods == j) & (times >= span[0]) & (times <= span[1])
        return found

    def sample_ratio(self, by_user: bool = True) -> SampleRatio:
        """Test whether the arms have as many users, or requests, as their shares state."""
        cells = [cell for each in self.periods for cell in each.arms.values()]
        by_user = by_user and any(cell.without_user < cell.rows for cell in cells)
        unit, both, counted = "users" if by_user else "requests", 0, []
        in_arms: dict[str, list[Hashes]] = {}
        for each in self.periods:
            counts = dict.fromkeys(each.shares or each.arms, 0)
            several = np.empty(0, np.uint64)
            if by_user:
                found, times = np.unique(
                    np.concatenate([cell.users for cell in each.arms.values()]), return_counts=True
                )
                several = found[times > 1]
                both += len(several)
            for arm, cell in each.arms.items():
                counts[arm] = cell.rows
                if by_user:
                    alone = np.setdiff1d(cell.users, several, assume_unique=True)
                    counts[arm] = len(alone)
                    in_arms.setdefault(arm, []).append(alone)
            counted.append((each.name, counts, each.shares))
        moved = 0
        if by_user and len(self.periods) > 1:
            of_arms = [np.unique(np.concatenate(users)) for users in in_arms.values()]
            _, times = np.unique(np.concatenate(of_arms), return_counts=True)
            moved = int(np.count_nonzero(times > 1))
        why_not = None
        if not self._shares.is_given:
            why_not = "shares are not given"
        elif self.has_row_weights:
            why_not = "rows were kept with different probabilities, which may go by what was shown"
        if why_not is not None:
            total = sum(sum(counts.values()) for _, counts, _ in counted) + both
            return SampleRatio(unit, (), None, why_not, both, moved, total)
        return sample_ratio(
            unit,
            [(name, counts, shares) for name, counts, shares in counted if shares is not None],
            both,
            moved,
        )

    def _survey(self, batch: LogBatch) -> None:
        codes, texts = batch.texts("arm")
        nobody = codes < 0
        if nobody.any():
            self.rows_without_arm += int(np.count_nonzero(nobody))
            batch, codes = batch.where(~nobody), codes[~nobody]
        weights = batch.row_weights
        self.has_row_weights |= weights is not None and bool((weights != 1.0).any())
        for key, of_period in self._keys(batch):
            for code in np.unique(codes[of_period]).tolist():
                cell = self._cell(key, texts[code])
                cell.add(batch.where(of_period & (codes == code)), self.strata)

    def _cell(self, key: tuple[str | None, int], arm: str) -> Cell:
        if key not in self._codes:
            shares = self._shares.of(*key)
            self._codes[key] = len(self.periods)
            self.periods.append(Period(self._named(*key), shares))
        arms = self.periods[self._codes[key]].arms
        if arm not in arms and sum(len(each.arms) for each in self.periods) == MOST_CELLS:
            raise ValueError(
                f"arm: more than {MOST_CELLS:,} of them, in all revisions together: {arm!r} is one"
                " more; is something else in the columns arm or revision?"
            )
        return arms.setdefault(arm, Cell())

    def _keys(self, batch: LogBatch) -> Iterator[tuple[tuple[str | None, int], Mask]]:
        """What distinguishes periods, with their rows (n,)."""
        codes, texts = batch.texts("revision")
        since = np.searchsorted(self._shares.times, _times(batch), side="right") - 1
        for code, time in np.unique(np.stack([codes, since], axis=1), axis=0).tolist():
            yield (None if code < 0 else texts[code], time), (codes == code) & (since == time)

    def _named(self, revision: str | None, time: int) -> str:
        parts = [] if revision is None else [f"revision {revision}"]
        if len(self._shares.times):
            parts.append(f"from {np.datetime_as_string(self._shares.times[time], unit='s')}Z")
        return ", ".join(parts) or "all the time"


def _times(batch: LogBatch) -> npt.NDArray[np.datetime64]:
    times = batch.column("ts").to_numpy(zero_copy_only=False)
    return np.asarray(times, "datetime64[us]")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
