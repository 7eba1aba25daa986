"""A server's handling of requests: the model, the answers it has given, the log.

A model is replaced as a whole: the new one is loaded and tested beside the old one, which is
released when its last request has been answered. If the new model is bad, the old one keeps
serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank.arraytypes import FloatArray
from fastrank.calibration import common_temperature, condense, expected_overlaps
from fastrank.extras import missing_extra
from fastrank.ids import as_written, id_from_text
from fastrank.inputs import nearest
from fastrank.lru import LRU
from fastrank.opening import open_directory
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE, TABLED
from fastrank.policies.spec import Stated
from fastrank.ranking import relabelled
from fastrank.rulesfile import named_rules
from fastrank.scoring import imported
from fastrank.seen import Seen
from fastrank.wire import RulesBody, short
from fastrank_serving.access import AccessLog, Line
from fastrank_serving.arms import Armed, InForce, Regime
from fastrank_serving.clients import Clients
from fastrank_serving.control import ControlFile, Taken, error_words, regime_of
from fastrank_serving.engine import Engine, Job, Ranked
from fastrank_serving.messages import (
    Origin,
    ProblemError,
    Request,
    Served,
    answer_of,
    encoded,
    field_of,
    names_policy,
    out_of_range,
    policy_of,
)
from fastrank_serving.metrics import Metrics
from fastrank_serving.rules import MAX_BYTES, Named, bytes_of, fitted
from fastrank_serving.seeds import seed_of
from fastrank_serving.settings import MAX_M, Settings

if TYPE_CHECKING:  # pyarrow is slow to import: only with a log
    from fastrank.eventlog import LogWriter

__all__ = ["Loaded", "Service", "open_model"]

_LOG = logging.getLogger("fastrank.serving")
_SEEN = 100_000  # users whose place in the model is cached
_LOOK = 0.1  # seconds between two looks for a model that should arrive
_STUCK = 10.0  # seconds after which a pass counts as hanging
_KEPT_BYTES = 64 << 20  # of answers, for requests that are sent again
_DETERMINISTIC = fr.Deterministic()
_TOGETHER = 32  # rows that are passed to the log at once
_AGREE = 1e-5  # tolerance for log-propensities in the self-test
_FEW_IDS = 256  # of a filter; longer ones are sorted and hashed for the log in a thread
_MOST_ASIDE = 16  # rows with longer filters that may wait for the log
_LOOKED_AT, _SCORES = 8, 400_000  # users, and their scores, that measure what a policy keeps
# The same for finding the temperature that keeps a given overlap.
_ASKED, _ASKED_SCORES = 64, 8_000_000


# Warnings, which add the name of the policy and what a temperature of 1 keeps.
_MODEL_HAS_NONE = (
    "the model's policy, %s, has no temperature: requests for a type that has one are ranked at %s"
)
_NOBODY_SAYS_ONE = (
    "neither the model nor a setting states a temperature: requests that name none are ranked by"
    " %s, %s"
)


class User(NamedTuple):
    """A user of the model; the vector is a view of the mapped file."""

    query: npt.NDArray[np.float32]
    temperature: float | None
    seen: Seen | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model that serves.

    Attributes
    ----------
    policy : Policy
        For requests that name none.
    fallback : Policy or None
        For users that the model does not know.
    rules : dict of str to Named
        Rules that requests may name.
    in_force : InForce
        The regime of settings and control file, on this model.
    """

    catalog: fr.Catalog
    model: fr.Model | None
    version: str
    nobody: npt.NDArray[np.float32]  # the query for unknown users
    policy: fr.Policy = field(default_factory=fr.PlackettLuce)
    fallback: fr.Policy | None = None
    rules: dict[str, Named] = field(default_factory=dict)
    in_force: InForce = field(default_factory=InForce)
    seen: dict[str, User] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        directory: os.PathLike[str],
        functions: Sequence[fr.ScoreFunction] = (),
        policy: fr.Policy | Stated | None = None,
        fallback: fr.Policy | Stated | None = None,
        rules: Mapping[str, fr.Rules] | None = None,
        k: int = 10,
        has_arms: bool = False,
        warns: bool = True,
    ) -> Loaded:
        """Open and test a model; ValueError, OSError or MemoryError if it cannot serve.

        `policy` is for requests that name none: by default the model's own. If neither states a
        temperature, it is 1, and if `warns`, the log says what that keeps. An overlap is that of k
        places.
        """
        catalog, model = open_directory(directory, functions=functions)
        own = None if model is None else model.policy
        has_temperature = own is not None and "temperature" in own.params
        by_model = policy is None and own is not None
        if policy is None:
            policy = Stated(fr.PlackettLuce().inference_type, {}) if own is None else own
        loaded = cls(
            catalog,
            model,
            catalog.version if model is None else model.version,
            np.zeros(catalog.dim, np.float32),
        )
        served = loaded.completed(policy, k) if isinstance(policy, Stated) else policy
        if isinstance(fallback, Stated):
            fallback = loaded.completed(fallback, k)
        loaded = replace(loaded, policy=served, fallback=fallback)
        said = None
        if not has_temperature and by_model:
            said = _MODEL_HAS_NONE
        elif (
            not (has_temperature or has_arms)
            and isinstance(policy, Stated)
            and policy.wants_temperature
        ):
            said = _NOBODY_SAYS_ONE
        if said is not None and warns:
            _LOG.warning(
                f"%s: {said}. `fastrank plan %s --target-overlap 0.7 --apply` gives the model a"
                " policy; --policy states one",
                directory,
                served.inference_type,
                loaded.what_is_kept(),
                directory,
            )
        try:
            loaded.test()
        except ModuleNotFoundError as error:  # its index needs FAISS
            raise ValueError(f"the model has an index: {missing_extra(error) or error}") from None
        loaded.take(rules or {})
        return loaded

    def take(self, rules: Mapping[str, fr.Rules]) -> None:
        """Set the named rules; ValueError for rules that do not fit the model."""
        policy = fr.PlackettLuce(self._temperature(0))  # any rules fit its law
        for name, each in rules.items():
            try:
                self.rules[name] = fitted(each, self.catalog, policy)
            except ValueError as error:
                text = str(error).removeprefix("rules: ")
                raise ValueError(f"the rules {name!r} do not fit the model: {text}") from None

    def test(self) -> None:
        """Rank for one user and check the propensities, which reads every page of the files."""
        query = self.nobody if self.model is None else self.model.user_vectors[0]
        k = min(10, len(self.catalog))
        temperature = self._temperature(0)
        policies: list[fr.Policy] = [fr.Deterministic(), fr.PlackettLuce(temperature)]
        if (
            self.catalog.index is not None and self.catalog.score is None
        ):  # it is read, and checked, when it is first used
            policies.append(fr.FlatTail(temperature))
        for policy in policies:
            self._try(policy, query, k)

    def _try(self, policy: fr.Policy, query: npt.NDArray[np.float32], k: int) -> None:
        if policy.sampler in TABLED:  # a table would be made and kept
            policy = policy.with_sampler("gumbel")
        ranking = self.catalog.rank(query, k, policy=policy, seed=1)
        again = self.catalog.log_propensities(query, ranking.item_ids, policy=policy)
        error = float(np.abs(np.asarray(again) - ranking.log_propensities).max())
        if not error <= _AGREE + ranking.log_norm_error:
            raise ValueError(f"self-test: propensities differ by {error:g} ({policy})")

    def under(self, regime: Regime, k: int = 10) -> Loaded:
        """The same model under a regime; an overlap is that of k places.

        Raises
        ------
        ValueError
            If the model cannot rank by the policy of an arm, or a further policy; the message
            names it.
        """
        query = self.nobody if self.model is None else self.model.user_vectors[0]
        policies = {f"arm {arm.name}": arm.policy for arm in regime.arms}
        policies |= {f"also {name}": stated for name, stated in regime.also.items()}
        found = {}
        for name, stated in policies.items():
            try:
                found[name] = self.completed(stated, k)
                self._try(found[name], query, min(k, len(self.catalog)))
                if stated.wants_temperature and not self._has_temperature:
                    kept = replace(self, policy=found[name]).what_is_kept()
                    _LOG.warning("%s: %s, for neither it nor the model states another", name, kept)
            except (ValueError, ModuleNotFoundError) as error:
                hint = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
                raise ValueError(f"{name}: {hint or error}") from None
        law = InForce(
            regime.revision,
            regime.experiment,
            tuple(Armed(a.name, found[f"arm {a.name}"], a.share) for a in regime.arms),
            regime.deterministic_only,
            {name: found[f"also {name}"] for name in regime.also},
            regime.key,
        )
        return replace(self, in_force=law)

    def completed(self, stated: Stated, k: int) -> fr.Policy:
        """Complete a stated policy from the model's.

        An overlap stands for the temperature that keeps it on average, at k places, for up to 64
        users spread over the model; it is the same on every server of this model.
        """
        drawn = stated.completed(self.models_policy)
        if stated.overlap is None:
            return drawn
        if self.model is None:
            raise ValueError("overlap: the model has no users to find it by: state a temperature")
        rows, values, counts = self._condensed(k, _ASKED, _ASKED_SCORES)
        own = np.array([self.model.temperature_at(row) for row in rows])
        return drawn.at_temperature(common_temperature(values, k, stated.overlap, own, counts))

    def _condensed(
        self, k: int, most: int, scores: int
    ) -> tuple[list[int], FloatArray, FloatArray]:
        """Rows of some users, spread over the model, with their scores and counts (`condense`)."""
        assert self.model is not None
        n, users = len(self.catalog), len(self.model.user_ids)
        count = min(users, max(1, min(most, scores // n)))
        rows = np.linspace(0, users - 1, count).astype(np.int64).tolist()
        values, counts = (
            np.array(each)
            for each in zip(
                *(condense(self.catalog.scores(self.model.user_vectors[row]), k) for row in rows),
                strict=True,
            )
        )
        return rows, values, counts

    @property
    def models_policy(self) -> fr.Policy | None:
        """The model's own, which may have a temperature when the serving policy has none."""
        return None if self.model is None else self.model.policy

    @property
    def _has_temperature(self) -> bool:
        return self.models_policy is not None and "temperature" in self.models_policy.params

    def _temperature(self, row: int) -> float:
        """Temperature of the policy for the user in a row of the model; 1 if it has none."""
        usual = float(self.policy.params.get("temperature", 1.0))
        own = 1.0 if self.model is None else self.model.temperature_at(row)
        return min(max(usual * own, MIN_TEMPERATURE), MAX_TEMPERATURE)

    def what_is_kept(self) -> str:
        """Describe what the policy's temperature keeps of the deterministic ranking.

        Computed from the scores of a few users, spread over the model; nothing is drawn.
        """
        text = f"temperature {self.policy.params.get('temperature', 1.0):g}"
        if self.model is None:
            return f"{text}; what it keeps of the deterministic ranking is unknown, without users"
        n = len(self.catalog)
        k = max(1, min(10, n // 2))
        rows, values, counts = self._condensed(k, _LOOKED_AT, _SCORES)
        own = np.array([self._temperature(row) for row in rows])
        kept = float(expected_overlaps(values, own, k, counts).mean())
        return (
            f"{text}, which keeps {kept:.2%} of their deterministic {k} for {len(rows)} of its"
            f" users, where random items are {k / n:.2%}"
        )

    def of_user(self, user_id: str) -> User | None:
        """A user's vector and temperature factor; None for an unknown user."""
        found = self.seen.get(user_id)
        if found is None:
            found = self._look_up(user_id)
            if found is not None:
                if len(self.seen) >= _SEEN:
                    self.seen.clear()
                self.seen[user_id] = found
        return found

    def why_unknown(self, user_id: str) -> str:
        """Explain why `of_user` returns None for a user."""
        if self.model is None:
            return f"a catalog is served, without users; send a query, not {user_id!r}"
        known = self.model.user_ids
        if id_from_text(user_id, known) is None:
            return f"the model does not know {user_id!r}: its user ids are {as_written(known)}"
        return f"the model does not know {user_id!r}"

    def keeps_table(self, user_id: str, policy: fr.Policy) -> bool:
        """`Model.keep_table` for a known user and the requested policy."""
        if self.model is None or self.model.table_temperature is None:
            return False
        return self.model.keep_table(id_from_text(user_id, self.model.user_ids), policy)

    def _look_up(self, user_id: str) -> User | None:
        if self.model is None:
            return None
        known = id_from_text(user_id, self.model.user_ids)
        if known is None or known not in self.model:
            return None
        own = self.model.user_temperature(known) if self.model.has_user_temperatures else None
        return User(self.model.user_vector(known), own, self.model.seen(known))


def open_model(settings: Settings, directory: Path, regime: Regime, warns: bool = True) -> Loaded:
    """Open and test the model of a directory, with everything served beside it."""
    loaded = Loaded.open(
        directory,
        imported(settings.score_functions),
        settings.policy,
        settings.fallback,
        named_rules(settings.rules),
        settings.k,
        bool(regime.arms),
        warns,
    )
    return loaded.under(regime, settings.k)


_Unlogged: TypeAlias = tuple[Job, Ranked, Served, float, int]  # the last: time of the answer


class Service:
    """Answers requests; all methods belong to one event loop.

    Attributes
    ----------
    ready : bool
        A model is loaded and tested.
    draining : bool
        After SIGTERM: accepted requests are answered, then it ends.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        loaded: Loaded | None = None,
        taken: Taken | None = None,
    ) -> None:
        self.settings = settings
        self.clients = Clients(settings)
        self.metrics = metrics
        metrics.queue_limit(settings.queue)
        if settings.secret is not None:
            metrics.has_secret(settings.secret.fingerprint)
        self.engine = Engine(settings.threads, settings.queue, settings.share)
        self.access = AccessLog(settings.access_log, settings.log_level, settings.secret)
        self.draining = False
        self.log: LogWriter | None = None
        self._unlogged: list[_Unlogged] = []
        self._aside: set[asyncio.Future[None]] = set()  # rows being logged in threads
        self._loaded = loaded
        # Awaited before a model serves; a ValueError prevents it from serving.
        self.on_loaded: Callable[[Loaded], Awaitable[None]] | None = None
        self._answers = _Answers(settings.keep_answers)
        self._regime = settings.regime  # to be in force for whichever model serves
        self._taken = taken
        self._control: ControlFile | None = None
        self._following: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()  # a model serves
        if loaded is not None:
            self._begun.set()
        self._reloading = asyncio.Lock()
        self._next_reload: asyncio.Future[str] | None = None  # a reload that has not begun

    # ---- Life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model; until then, /ping answers 503."""
        self.engine.begin()
        self.access.begin()
        self.log = self._begin_log()
        if self.settings.control is not None:
            self._control = ControlFile(
                self.settings.control, self.settings.control_every, self._taken
            )
            self._regime = replace(self._regime, deterministic_only=True, revision=None)
        if self.settings.directory is None:
            _LOG.info("waiting for a model from %s", self.settings.watch)
        while self.settings.directory is None:
            await asyncio.sleep(_LOOK)
        loaded = await self._load()
        if self._control is not None:
            loaded = await self._looked(self._control, loaded)
            self._following = asyncio.ensure_future(self._follow(self._control))
        self._serve(loaded)
        self.metrics.loaded(loaded.version)
        self._begun.set()

    def _begin_log(self) -> LogWriter | None:
        settings = self.settings
        if settings.log_directory is None:
            return None
        from fastrank.eventlog import LogWriter

        if not settings.is_log_uploaded:
            try:
                return LogWriter(settings.log_directory)
            except OSError as error:
                raise OSError(f"log: {error}") from None
        if settings.log_spool is None:
            raise ValueError(
                f"log_spool: give a directory for rows to upload to {settings.log_directory}"
            )
        return LogWriter(settings.log_spool, segment_seconds=settings.log_every)

    def _serve(self, loaded: Loaded) -> None:
        """Serve this model from now on; requests in progress keep the one they began with."""
        self._loaded = loaded
        self.metrics.in_force(loaded.in_force)
        said = loaded.in_force.described()
        _LOG.info("serving model %s%s", loaded.version[:12], f", {said}" if said else "")

    async def _follow(self, control: ControlFile) -> None:
        """Read the control file as long as the server runs."""
        while True:
            await asyncio.sleep(control.pause())
            await self._looked(control)

    async def _looked(self, control: ControlFile, first: Loaded | None = None) -> Loaded:
        """The serving model, under the control file's content if new and possible."""
        outcome, why = "same", None
        try:
            content = await control.read()
        except Exception as error:  # a store may raise anything
            outcome, why = "unreachable", error_words(error)
        async with self._reloading:
            before = loaded = first or self.loaded
            if why is None and content != control.in_force:
                try:
                    loaded = await self._follow_content(control, content, before)
                    outcome = "taken"
                except Exception as error:
                    outcome, why = "refused", error_words(error)
            others = None if why is None else control.of_others()
            if others is not None:
                with contextlib.suppress(Exception):  # a newer model may not be able to rank by it
                    loaded = await self._follow_content(control, others, before)
            self.metrics.looked_at_control(outcome)
            is_news = control.is_news(why)
            if is_news and why is not None:
                law = loaded.in_force.described() or "the settings"
                _LOG.error("control file %s: %s; still in force: %s", control.address, why, law)
            elif is_news and outcome == "same":
                _LOG.info("control file %s: it states again what is in force", control.address)
            if loaded is not before and first is None:
                self._serve(loaded)
        return loaded

    async def _follow_content(self, control: ControlFile, content: bytes, loaded: Loaded) -> Loaded:
        """The model under a control file's content; raises if that cannot be followed."""
        regime, k = regime_of(content, self.settings.regime), self.settings.k
        changed = await self.engine.run(lambda: loaded.under(regime, k))
        before, self._regime = self._regime, regime
        if before.revision == regime.revision and before != regime:
            _LOG.warning(
                "control file %s: revision %s has stated something else before: change the revision"
                " with each edit, or evaluations of the rows mix the two",
                control.address,
                regime.revision,
            )
        control.follow(content)
        return changed

    async def _load(self) -> Loaded:
        loaded = await self.engine.run(self._open)
        if self.log is not None:
            before = self._loaded
            known = self.log.kind or (None if before is None else _kind_of(before.catalog))
            if known not in (None, _kind_of(loaded.catalog)):  # it would refuse this model's rows
                raise ValueError(
                    f"the log has {known} item ids, and this model has the other kind: start"
                    " another server for it, with its own directory for --log"
                )
        if self.on_loaded is not None:
            await self.on_loaded(loaded)
        return loaded

    def _open(self) -> Loaded:
        directory = self.settings.directory
        if directory is None:
            raise ValueError(f"no model has arrived from {self.settings.watch}")
        return open_model(self.settings, directory, self._regime)

    async def reload(self) -> str:
        """Load the model that the directory holds now, and return its version.

        Calls that arrive while one waits for another to end share it.

        Raises
        ------
        ValueError, OSError, MemoryError
            If the new model cannot serve; the old one continues.
        """
        if self._next_reload is None:
            self._next_reload = asyncio.ensure_future(self._reload())
        return await asyncio.shield(self._next_reload)

    async def _reload(self) -> str:
        await self._begun.wait()  # otherwise the first model could replace a newer one
        async with self._reloading:
            self._next_reload = None  # the directory may change from now on
            try:
                loaded = await self._load()
            except (ValueError, OSError, MemoryError) as error:
                self.metrics.reload_failed()
                _LOG.error("the model was not reloaded, and the old one keeps serving: %s", error)
                raise
            self._serve(loaded)
            self.metrics.loaded(loaded.version)
            return loaded.version

    async def close(self) -> None:
        """Flush the log; nothing is served any more."""
        if self._following is not None:
            self._following.cancel()
        self.tick()
        if self._aside:
            await asyncio.wait(self._aside)
        if self.log is not None:
            await self.engine.run(self.log.close)
            self.tick()  # counts its last rows too, for the worker that replaces this one
        await self.engine.run(self.access.close)
        self.engine.close()

    def tick(self) -> None:
        """Log and count recent answers; a server calls it ten times a second."""
        self._log_rows()
        self.access.flush()
        self.metrics.fold()
        self.metrics.look(self.engine.inside, self.catalog, self.log)
        self.metrics.share()

    @property
    def loaded(self) -> Loaded:
        if self._loaded is None:
            raise ProblemError(503, "not_ready", "the model is being loaded", retry_after=1)
        return self._loaded

    @property
    def catalog(self) -> fr.Catalog | None:
        """The catalog; None until there is one."""
        return None if self._loaded is None else self._loaded.catalog

    @property
    def policy(self) -> fr.Policy | None:
        """For requests that name none; None until there is a model."""
        return None if self._loaded is None else self._loaded.policy

    @property
    def rules(self) -> dict[str, Named]:
        """Rules that requests may name; none until there is a model."""
        return {} if self._loaded is None else self._loaded.rules

    @property
    def in_force(self) -> InForce:
        """The regime in force; empty until there is a model."""
        return InForce() if self._loaded is None else self._loaded.in_force

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self._loaded is not None and not self.draining and not self.hangs

    @property
    def hangs(self) -> bool:
        """Whether a ranking takes longer than any should."""
        return self.engine.stuck_for() >= _STUCK

    # ---- Requests ---------------------------------------------------------------------------

    async def answer(
        self,
        request: Request,
        origin: Origin,
        *,
        is_batch: bool = False,
        line: Line | None = None,
    ) -> bytes:
        """The body of the answer; `is_batch` for a line of a batch, `line` of the access log.

        Raises
        ------
        ProblemError
        """
        self.clients.check(request, self.rules)
        request.k = self._places(request)
        # A request without an id of its own cannot be sent again.
        if origin.request_id_source == "server" or not self.settings.keep_answers:
            return await self._answer(request, origin, is_batch, line)
        given = origin.request_id
        request.request_id = None
        content = hash(encoded(request))
        first = self._answers.get(given, content)
        if first is not None:
            self.metrics.repeated()
            return await asyncio.shield(first)
        first = self._answers.begin(given, content)
        try:
            body = await self._answer(request, origin, is_batch, line)
        except BaseException as error:
            self._answers.failed(given, error)  # a repeated request is tried anew
            raise
        self._answers.keep(given, body)
        return body

    def no_http(self) -> None:
        """Count input that was not HTTP, and was answered with a 400."""
        self.metrics.refused(400)
        if self.access.least <= 400:
            self.access.note(Line(0.0, "-", "-", 400, 0.0, 0, code="no_http"))

    def _places(self, request: Request) -> int:
        return self.settings.k if isinstance(request.k, msgspec.UnsetType) else request.k

    async def _answer(
        self, request: Request, origin: Origin, is_batch: bool, line: Line | None
    ) -> bytes:
        began = time.monotonic()
        settings, loaded = self.settings, self.loaded
        k = self._places(request)
        if not 1 <= k <= settings.max_k:
            raise out_of_range("k", k, f"1 to {settings.max_k}")
        if request.m is not None and not 1 <= request.m <= MAX_M:
            raise out_of_range("m", request.m, f"1 to {MAX_M}")
        for name in ("exclude", "allow", "after"):
            ids = getattr(request, name)
            if ids is not None and len(ids) > settings.max_ids:
                raise out_of_range(name, len(ids), f"at most {settings.max_ids} ids")
        law, arm = loaded.in_force, None
        if law.arms and not law.deterministic_only and not names_policy(request):
            arm = law.arm_of(request.user_id or origin.request_id)
            policy = arm.policy
        else:
            policy = policy_of(request, loaded.policy, loaded.models_policy)
            self.clients.check_policy(request, policy, loaded.policy, loaded.models_policy)
        user, is_fallback = self._query(loaded, request)
        query, user_temperature, seen = user
        if is_fallback and loaded.fallback is not None:
            policy = loaded.fallback
        if law.deterministic_only:
            policy = _DETERMINISTIC
        asked = policy
        if user_temperature is not None and "temperature" in policy.params:
            try:
                policy = policy.scaled(user_temperature)
            except ValueError as error:
                raise ProblemError(422, "out_of_range", str(error), field="temperature") from None
        else:
            user_temperature = None
        rules = self._rules(loaded, request)
        seed, seed_source = seed_of(
            settings.secret,
            request,
            query,
            request_id=origin.request_id,
            model_version=loaded.version,
            policy=policy,
        )
        has_table = (
            policy.sampler in TABLED
            and request.user_id is not None
            and request.query is None
            and not is_fallback
            and request.score is None
            and not request.params
            and loaded.keeps_table(request.user_id, asked)
        )
        job = Job(
            catalog=loaded.catalog,
            query=query,
            k=k,
            policy=policy.with_sampler("cached") if has_table else policy,
            has_table=has_table,
            seed=seed,
            exclude=request.exclude,
            allow=request.allow,
            score=request.score,
            params=request.params,
            rules=rules,
            after=request.after,
            seen=seen,
            also=_scaled(law.also, user.temperature) if law.also else None,
            deadline=began + settings.deadline,
            is_batch=is_batch,
        )
        try:
            ranked = await self.engine.rank(job)
        except ValueError as error:
            text = str(error)
            if text.startswith("damaged: "):  # caused by the model's files, not by the request
                raise
            raise ProblemError(422, "invalid_value", text, field=field_of(text)) from None
        if has_table:
            relabelled(ranked.ranking, policy)
        served = Served(
            origin=origin,
            user_id=request.user_id,
            k=k,
            model_version=loaded.version,
            seed_source=seed_source,
            is_fallback=is_fallback,
            user_temperature=user_temperature,
            query=query.tolist() if is_fallback else msgspec.UNSET,
            rules_name=request.rules if isinstance(request.rules, str) else None,
            has_rules=request.rules is not None,
            experiment=None if arm is None else law.experiment,
            arm=None if arm is None else arm.name,
            revision=law.revision,
        )
        body = encoded(answer_of(ranked.ranking, served, ranked.also))
        latency = time.monotonic() - began
        if self.log is not None:
            row = job, ranked, served, latency, time.time_ns() // 1000
            if job.ids > _FEW_IDS:
                await self._log_aside(row)
            else:
                self._unlogged.append(row)
                if len(self._unlogged) >= _TOGETHER or job.ids:
                    self._log_rows()
        self.metrics.served(policy.inference_type, latency, ranked, served)
        if line is not None:
            line.policy, line.arm = policy.inference_type, served.arm
            line.model_version = loaded.version[:12]
        return body

    def _query(self, loaded: Loaded, request: Request) -> tuple[User, bool]:
        """The user to rank for, and whether the fallback ranks."""
        if request.query is not None:
            query = np.array(request.query, np.float32)
            if query.shape != (loaded.catalog.dim,):
                raise ProblemError(
                    422,
                    "invalid_value",
                    f"query: expected {loaded.catalog.dim} numbers, got {len(query)}",
                    field="query",
                    value=f"{len(query)} numbers",
                    allowed=f"{loaded.catalog.dim} numbers",
                )
            return User(query, None), False
        assert request.user_id is not None
        found = loaded.of_user(request.user_id)
        if found is None:
            if loaded.fallback is None:
                raise ProblemError(
                    404,
                    "unknown_user",
                    f"user_id: {loaded.why_unknown(request.user_id)}",
                    field="user_id",
                    value=request.user_id,
                )
            return User(loaded.nobody, None), True
        return found, False

    def _rules(self, loaded: Loaded, request: Request) -> fr.Rules | RulesBody | None:
        """The rules that the request names or states."""
        rules, names = request.rules, list(loaded.rules)
        if isinstance(rules, str) and rules in loaded.rules:
            return loaded.rules[rules].rules
        if isinstance(rules, str):
            have = ", ".join(names) or "none"
            raise ProblemError(
                422,
                "unknown_rules",
                f"rules: expected a name that the server defines ({have});"
                f" got {short(rules)!r}{nearest(rules, names)}",
                field="rules",
                value=rules,
                allowed=names,
            )
        if rules is not None and (size := bytes_of(rules, len(loaded.catalog))) > MAX_BYTES:
            allowed = f"expressions that take at most {MAX_BYTES} bytes with this catalog"
            raise out_of_range("rules", f"{size} bytes", allowed)
        return rules

    def _log_rows(self) -> None:
        """Pass answered rows to the log: together they take half the time of single rows."""
        unlogged, self._unlogged = self._unlogged, []
        for row in unlogged:
            self._log_row(row)

    async def _log_aside(self, row: _Unlogged) -> None:
        """Log in a thread, since sorting and hashing a long filter would make others wait."""
        if len(self._aside) >= _MOST_ASIDE:
            await asyncio.wait(self._aside, return_when=asyncio.FIRST_COMPLETED)
        logged = asyncio.ensure_future(self.engine.run(lambda: self._log_row(row)))
        self._aside.add(logged)
        logged.add_done_callback(self._aside.discard)

    def _log_row(self, row: _Unlogged) -> None:
        job, ranked, served, latency, ts = row
        assert self.log is not None
        # The model knows a user's vector, and the log names the model.
        known = served.user_id is not None and not served.is_fallback
        try:
            self.log.append(
                ranked.ranking,
                request_id=served.origin.request_id,
                request_id_source=served.origin.request_id_source,
                inference_id=served.origin.inference_id,
                traceparent=served.origin.traceparent,
                user_id=served.user_id,
                experiment=served.experiment,
                arm=served.arm,
                revision=served.revision,
                evaluation_log_propensities=ranked.also,
                query=None if known else job.query,
                model_version=served.model_version,
                seed_source=served.seed_source,
                is_fallback=served.is_fallback,
                latency_us=1e6 * latency,
                user_temperature=served.user_temperature,
                ts=ts,
            )
        except Exception:  # one row must not affect the others, nor end the server
            self.metrics.not_logged()
            _LOG.exception("request %r: not logged", served.origin.request_id)


def _scaled(policies: Mapping[str, fr.Policy], factor: float | None) -> Mapping[str, fr.Policy]:
    """The policies for a user with this temperature factor, as far as they can be scaled."""
    if factor is None:
        return policies
    found = {}
    for name, policy in policies.items():
        with contextlib.suppress(ValueError):  # outside the range of temperatures
            found[name] = policy.scaled(factor)
    return found


def _kind_of(catalog: fr.Catalog) -> str:
    """The kind of its item ids, as a log names it."""
    return "str" if catalog.item_ids.dtype.kind == "U" else "int64"


class _Answers:
    """Answers to the latest request ids, for requests that are sent again."""

    def __init__(self, most: int) -> None:
        # Each with a hash of the request.
        self._being_made: dict[str, tuple[int, asyncio.Future[bytes]]] = {}
        self._made = LRU[str, tuple[int, asyncio.Future[bytes]]](_KEPT_BYTES, entries=most)

    def get(self, request_id: str, content: int) -> asyncio.Future[bytes] | None:
        """The answer to a request id; ProblemError if its request was different."""
        found = self._being_made.get(request_id) or self._made.get(request_id)
        if found is None:
            return None
        if found[0] != content:
            raise ProblemError(
                409,
                "request_id_taken",
                f"request_id: {request_id!r} was used by another request",
                field="request_id",
                value=request_id,
            )
        return found[1]

    def begin(self, request_id: str, content: int) -> asyncio.Future[bytes]:
        """Note that the answer is being made."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._being_made[request_id] = content, answer
        return answer

    def keep(self, request_id: str, body: bytes) -> None:
        """Keep the answer; those not requested for the longest time make room."""
        made = self._being_made.pop(request_id)
        made[1].set_result(body)
        self._made.put(request_id, made, len(body))

    def failed(self, request_id: str, error: BaseException) -> None:
        """Note that there is no answer."""
        _, answer = self._being_made.pop(request_id)
        answer.set_exception(error if isinstance(error, ProblemError) else _interrupted())
        answer.exception()  # marks it as retrieved, since nobody may wait for it


def _interrupted() -> ProblemError:
    return ProblemError(
        503, "interrupted", "the first request with this id was interrupted", retry_after=1
    )
