"""Parse policies written on command lines and in settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fastrank.inputs import shown
from fastrank.policies import Policy, completed, inference_type_of, parameters_of, policy
from fastrank.policies.relative import RelativeTemperature

__all__ = [
    "SYNTAX",
    "Stated",
    "parse_policies",
    "parse_policy",
    "parse_stated",
    "written",
]

NamedPolicy: TypeAlias = Policy | RelativeTemperature

SYNTAX = "[LABEL=]POLICY[:PARAM=VALUE,...]"


def parse_policy(text: str, option: str = "--policy") -> tuple[str, NamedPolicy]:
    """Parse a label and a policy from ``[label=]policy[:param=value[,param=value]]``.

    Parameters
    ----------
    text : str
        The policy by either of its names, as `fastrank.policies.inference_type_of` reads them. A
        temperature ``x0.8`` is 0.8 times the logging policy's.
    option : str
        Name of the option, for errors.

    Returns
    -------
    label : str
        By default the text itself.
    policy : Policy or RelativeTemperature
        For a relative temperature, a callable that makes the policy from the logging policy.

    Raises
    ------
    ValueError
        If the text is malformed; the message names the option and what is wrong.

    Examples
    --------
    >>> parse_policy("warm=plackett_luce:temperature=0.5")
    ('warm', PlackettLuce(temperature=0.5, sampler='gumbel'))
    >>> parse_policy("plackett_luce:temperature=x0.8")
    ('plackett_luce:temperature=x0.8', RelativeTemperature(factor=0.8))
    """
    label, name, params, relative = _parsed(text, option)
    try:
        if relative is None:
            return label, policy(name, **params)
        named = policy(name, **params, temperature=1.0)  # says whether it takes a temperature
        law = named.law
        if law is None or not law.is_plackett_luce:  # the result has the logging policy's law
            raise ValueError(
                "temperature: a relative one, such as x0.8, needs Plackett-Luce without a head"
            )
        return label, RelativeTemperature(relative)
    except ValueError as error:
        raise ValueError(f"{option}: {text}: {error}") from None


@dataclass(frozen=True, slots=True)
class Stated:
    """A policy with some parameters given; a model may supply the rest.

    Attributes
    ----------
    inference_type : str
    params : mapping of str to float
        The parameters given.
    overlap : float, optional
        Given instead of a temperature: the share of the deterministic ranking to keep, from which
        a model computes the temperature.

    Examples
    --------
    >>> from fastrank import PlackettLuce
    >>> parse_stated("epsilon_greedy:epsilon=0.2").completed(PlackettLuce(0.5))
    EpsilonGreedy(epsilon=0.2)
    >>> parse_stated("plackett_luce").completed(PlackettLuce(0.5))
    PlackettLuce(temperature=0.5, sampler='gumbel')
    """

    inference_type: str
    params: Mapping[str, float]
    overlap: float | None = None

    def completed(self, *usual: Policy | None) -> Policy:
        """Make the policy; `fastrank.policies.completed` supplies the parameters not given."""
        return completed(self.inference_type, self.params, *usual)

    @property
    def wants_temperature(self) -> bool:
        """Whether the policy needs a temperature, and neither it nor an overlap was given."""
        return (
            "temperature" in parameters_of(self.inference_type)
            and "temperature" not in self.params
            and self.overlap is None
        )


def parse_stated(text: str, option: str = "--policy", *, takes_overlap: bool = False) -> Stated:
    """Parse a policy from ``policy[:param=value[,param=value]]``, for a model to complete.

    With `takes_overlap`, ``overlap=0.7`` may replace the temperature of Plackett-Luce.

    Raises
    ------
    ValueError
        As `parse_policy`; also for a relative temperature.

    Examples
    --------
    >>> parse_stated("plackett_luce:overlap=0.7", takes_overlap=True).overlap
    0.7
    """
    _, name, params, relative = _parsed(text, option)
    if relative is not None:
        raise ValueError(f"{option}: {text}: expected a temperature, not one relative to a log's")
    overlap = params.pop("overlap", None) if takes_overlap else None
    try:
        drawn = policy(name, **params)
        if overlap is not None:
            if drawn.law is None or not drawn.law.is_plackett_luce:
                raise ValueError("overlap: needs Plackett-Luce without a head")
            if "temperature" in params:
                raise ValueError("overlap: determines the temperature; give only one of the two")
            if not 0.0 < overlap < 1.0:
                raise ValueError(f"overlap: must lie between 0 and 1, got {overlap:g}")
    except ValueError as error:
        raise ValueError(f"{option}: {text}: {error}") from None
    return Stated(inference_type_of(name), params, overlap)


def written(policy: Policy) -> str:
    """Write a policy as text that `parse_stated` reads back exactly; parameters sorted by name.

    Examples
    --------
    >>> from fastrank import BestFirst, PlackettLuce
    >>> written(BestFirst(2, PlackettLuce(0.1)))
    'stochastic_gumbel_softmax_trick:head=2,temperature=0.1'
    """
    params = ",".join(
        f"{name}={value if isinstance(value, int) else float(value)!r}"
        for name, value in sorted(policy.params.items())
    )
    return f"{policy.inference_type}:{params}" if params else policy.inference_type


def _parsed(text: str, option: str) -> tuple[str, str, dict[str, float], float | None]:
    """Parse label, name, parameters, and the factor of a relative temperature."""
    head, colon, tail = text.partition(":")
    label, equals, name = head.rpartition("=")
    name = name.strip()
    label = label.strip() if equals else text.strip()
    if not name or not label or (colon and not tail.strip()):
        raise ValueError(f"{option}: expected {SYNTAX}, got {shown(text)}")
    inference_type_of(name, f"{option}: expected {SYNTAX}, got {shown(text)}: POLICY")
    params: dict[str, float] = {}
    relative: float | None = None
    for word in tail.split(",") if colon else ():
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key in params or (key == "temperature" and relative is not None):
            raise ValueError(f"{option}: {text}: expected PARAM=VALUE, each once; got {word!r}")
        times = key == "temperature" and value.startswith("x")
        try:
            number = float(value[1:] if times else value)
        except ValueError:
            raise ValueError(f"{option}: {text}: {key}: not a number: {value!r}") from None
        if times:
            relative = number
        else:
            params[key] = number
    return label, name, params, relative


def parse_policies(texts: Sequence[str], option: str = "--policy") -> dict[str, NamedPolicy]:
    """Parse several policies into a dict by label; a ValueError if two share a label.

    Examples
    --------
    >>> list(parse_policies(["deterministic", "hot=plackett_luce:temperature=2"]))
    ['deterministic', 'hot']
    """
    found: dict[str, NamedPolicy] = {}
    for text in texts:
        label, target = parse_policy(text, option)
        if label in found:
            raise ValueError(f"{option}: two policies have the label {label!r}; give them labels")
        found[label] = target
    return found
