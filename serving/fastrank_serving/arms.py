"""The policies in force: an experiment's arms, their users, and further settings.

A user's arm is the winner of a race. Each arm has a time for each user, -log(u) divided by its
share, where u in (0, 1) is a hash of experiment, arm and user under a key; the smallest time wins.
So arms get their shares, and when shares change, a user only moves to an arm whose share has grown
more than that of the arm they leave. With two arms, or where one arm takes from all others in
proportion, no split moves fewer users. The order in which arms are written does not matter.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import fastrank as fr
from fastrank.inputs import shown
from fastrank.policies.spec import Stated, parse_stated
from fastrank_serving.secret import Secret

__all__ = [
    "ALSO_SYNTAX",
    "ARM_SYNTAX",
    "SHARES_OFF",
    "Arm",
    "Armed",
    "InForce",
    "Regime",
    "arm_of",
    "as_name",
    "as_revision",
    "as_share",
    "checked",
    "named_policies",
    "parse_arms",
]

ALSO_SYNTAX = "NAME=POLICY[:PARAM=VALUE,...]"
ARM_SYNTAX = f"{ALSO_SYNTAX}@SHARE"
SHARES_OFF = 1e-6  # how far the sum of shares may be from 1
# Names of experiments, arms and policies, and revisions: used in `--shares` and in labels.
_NAME = re.compile(r"[^\W_][\w.-]{0,99}")
_BITS = (1 << 53) - 1
_KEY = b"fastrank arms"  # used without a secret


class Arm(NamedTuple):
    """One arm as stated."""

    name: str
    policy: Stated
    share: float


@dataclass(frozen=True, slots=True)
class Regime:
    """The policies to rank by, as settings and a control file state them.

    Attributes
    ----------
    revision : str or None
        The revision; None for a server without experiment and control file.
    experiment : str or None
    arms : tuple of Arm
        The arms of the experiment.
    deterministic_only : bool
        Nothing is drawn: all rankings are deterministic.
    also : mapping of str to Stated
        Policies whose log-propensities are also logged.
    key : bytes
        Key of the split: servers with the same key agree.
    """

    revision: str | None = None
    experiment: str | None = None
    arms: tuple[Arm, ...] = ()
    deterministic_only: bool = False
    also: Mapping[str, Stated] = field(default_factory=dict)
    key: bytes = field(default=_KEY, repr=False)

    @classmethod
    def stated(
        cls,
        experiment: str | None,
        arms: Sequence[str] = (),
        also: Sequence[str] = (),
        secret: Secret | None = None,
    ) -> Regime:
        """Build the regime of settings; a ValueError names the setting that is wrong.

        Its revision is a hash of everything that decides who is shown what.

        Examples
        --------
        >>> regime = Regime.stated("warmer", ["a=deterministic@0.5", "b=uniform@0.5"])
        >>> regime.revision, [arm.share for arm in regime.arms]
        ('382c83f41d3c', [0.5, 0.5])
        """
        if experiment is not None:
            as_name("experiment", experiment)
        found = parse_arms(arms)
        revision = None
        if found:
            said = [
                [name, policy.inference_type, sorted(policy.params.items()), policy.overlap, share]
                for name, policy, share in sorted(found)
            ]
            by = None if secret is None else secret.fingerprint
            content = json.dumps([experiment, said, by]).encode()
            revision = hashlib.sha256(content).hexdigest()[:12]
        key = _KEY if secret is None else secret.key
        return cls(revision, experiment, found, also=named_policies(also), key=key)


def parse_arms(texts: Iterable[str], named: str = "arm") -> tuple[Arm, ...]:
    """Parse arms ``NAME=POLICY@SHARE``, whose shares sum to 1; a ValueError names the problem.

    Examples
    --------
    >>> parse_arms(["all=uniform@1"])
    (Arm(name='all', policy=Stated(inference_type='uniform', params={}, overlap=None), share=1.0),)
    """
    found = []
    for text in texts:
        name, equals, rest = text.partition("=")
        policy, at, share = rest.rpartition("@")
        if not equals or not at:
            cut = " (in a variable, put one that contains a comma in double quotes)"
            raise ValueError(
                f"{named}: expected {ARM_SYNTAX}, got {shown(text)}{'' if at else cut}"
            )
        found.append(arm_of(name, policy, share, named))
    return checked(found, named)


def arm_of(name: str, policy: str, share: str, named: str = "arm") -> Arm:
    """Make an arm from its parts, checked."""
    as_name(named, name)
    return Arm(name, _policy(policy, f"{named}: {name}"), as_share(f"{named}: {name}", share))


def _policy(text: str, named: str) -> Stated:
    if "=" in text.partition(":")[0]:  # a label, but the arm has a name already
        raise ValueError(f"{named}: expected POLICY[:PARAM=VALUE,...], got {shown(text)}")
    return parse_stated(text, named, takes_overlap=True)


def as_share(named: str, share: Any) -> float:
    try:
        number = float(share)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(share, bool) or not 0.0 <= number <= 1.0:
        raise ValueError(f"{named}: expected a share of 0 to 1, got {shown(share)}")
    return number


def as_name(named: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{named}: expected a name, of letters, digits, and . _ - after the first, got"
            f" {shown(name)}"
        )
    return name


def as_revision(revision: object) -> str:
    """An integer or a name, as the text that rows contain."""
    is_number = isinstance(revision, int) and not isinstance(revision, bool)
    text = as_name("revision", str(revision) if is_number else revision)
    try:
        is_time = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        is_time = False
    if is_time:
        raise ValueError(
            f"revision: {text} is a time, and `evaluate --shares` would read it as one"
        )
    return text


def checked(arms: Sequence[Arm], named: str = "arm") -> tuple[Arm, ...]:
    """The same arms, if no name is repeated and their shares sum to 1."""
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{named}: {name} is given twice")
    total = math.fsum(arm.share for arm in arms)
    if arms and abs(total - 1.0) > SHARES_OFF:
        said = "".join(f"{arm.share:g} + " for arm in arms)[:-3] + " = " if len(arms) > 1 else ""
        raise ValueError(f"{named}: shares must sum to 1, got {said}{total:.7g}")
    return tuple(arms)


def named_policies(texts: Iterable[str]) -> dict[str, Stated]:
    """Parse policies ``NAME=POLICY``, by name; a ValueError names the one that is wrong."""
    found: dict[str, Stated] = {}
    for text in texts:
        name, equals, policy = text.partition("=")
        if not equals:
            raise ValueError(f"also: expected {ALSO_SYNTAX}, got {shown(text)}")
        if as_name("also", name) in found:
            raise ValueError(f"also: {name} is given twice")
        found[name] = _policy(policy, f"also: {name}")
    return found


# ---- On a model -------------------------------------------------------------------------------


class Armed(NamedTuple):
    """An arm with its policy on a model."""

    name: str
    policy: fr.Policy
    share: float


@dataclass(frozen=True, slots=True)
class InForce:
    """A regime on a model, which answers requests.

    Attributes
    ----------
    revision, experiment, deterministic_only
        As in `Regime`.
    arms : tuple of Armed
    also : mapping of str to Policy
    key : bytes
        Key of the split: servers with the same key agree.

    Examples
    --------
    >>> arms = (Armed("a", fr.Uniform(), 0.5), Armed("b", fr.Deterministic(), 0.5))
    >>> law = InForce("r1", "warmer", arms)
    >>> [law.arm_of(user).name for user in ("ann", "bob", "cy")]
    ['a', 'b', 'b']
    """

    revision: str | None = None
    experiment: str | None = None
    arms: tuple[Armed, ...] = ()
    deterministic_only: bool = False
    also: Mapping[str, fr.Policy] = field(default_factory=dict)
    key: bytes = field(default=_KEY, repr=False)
    _race: tuple[tuple[Armed, hmac.HMAC], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        race = []
        for arm in self.arms:
            if arm.share:
                start = hmac.new(self.key, digestmod="sha256")
                start.update(_part("arm") + _part(str(self.experiment)) + _part(arm.name))
                race.append((arm, start))
        object.__setattr__(self, "_race", tuple(race))

    def arm_of(self, unit: str) -> Armed:
        """The arm of a user, or of a request without a known user; takes a microsecond per arm."""
        own = _part(unit)
        best, first = self._race[0][0], math.inf
        for arm, start in self._race:
            lane = start.copy()
            lane.update(own)
            number = int.from_bytes(lane.digest()[-8:], "big") & _BITS  # as in `Secret.number`
            time = -math.log((number + 0.5) * 2.0**-53) / arm.share
            if time < first:
                best, first = arm, time
        return best

    def to_dict(self) -> dict[str, Any]:
        """The regime in JSON's types."""
        return {
            "revision": self.revision,
            "experiment": self.experiment,
            "arms": {arm.name: {"share": arm.share, **_named(arm.policy)} for arm in self.arms},
            "deterministic_only": self.deterministic_only,
            "also": {name: _named(policy) for name, policy in self.also.items()},
        }

    def described(self) -> str:
        """Describe it for the server's log; "" if there is nothing to say."""
        parts = [] if self.revision is None else [f"revision {self.revision}"]
        if self.deterministic_only:
            parts.append("deterministic only")
        elif self.arms:
            each = (f"{arm.name} {arm.share:g} {_words(arm.policy)}" for arm in self.arms)
            parts.append(f"experiment {self.experiment}: {'; '.join(each)}")
        return ", ".join(parts)


def _named(policy: fr.Policy) -> dict[str, Any]:
    return {"name": policy.inference_type, "params": policy.params}


def _words(policy: fr.Policy) -> str:
    params = [f"{name} {value:.6g}" for name, value in policy.params.items()]
    return ", ".join([policy.inference_type, *params])


def _part(text: str) -> bytes:
    """A part behind its length, so that different lists of parts never give the same text."""
    content = text.encode(errors="surrogatepass")
    return len(content).to_bytes(8, "little") + content
