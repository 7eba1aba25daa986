"""Words of a plan, for the terminal and for the page."""

from __future__ import annotations

from fastrank.plan import Choice, Kind, Plan, Point, Share, Solution
from fastrank.plan.points import MARKS
from fastrank.policies import short_name

__all__ = [
    "KINDS",
    "WORDS",
    "choice_text",
    "describe",
    "not_reached_text",
    "parameter",
    "question",
    "share_text",
    "solution_text",
]

# The name of each kind, the name of its parameter, and its mark in pictures.
KINDS: dict[Kind, tuple[str, str, str]] = {
    "temperature": ("one temperature for all", "temperature", "o"),
    "user_temperature": ("each user's own temperature", "aims at", "*"),
    "epsilon": ("epsilon-greedy", "epsilon", "x"),
}
WORDS = {
    "Overlap": "the share of the deterministic ranking's items that a drawn ranking still shows:"
    " 100 % explores nothing.",
    "Loss": "how much lower the mean score of the items shown is; showing random items would be 100"
    " %.",
    "Perplexity": "the number of equally likely items that would make the first place just as"
    " uncertain: 1 is certain.",
    "ESS share": "which share of the log's rankings counts, after weighting, when another policy is"
    " evaluated from it: at 0.1 %, a million logged rankings are worth a thousand.",
}


def describe(found: Plan) -> str:
    """Describe in a sentence what the plan covers."""
    items = f"{found.n_items:,} items"
    if found.n_eligible < found.n_items:
        items = f"{found.n_eligible:,} of {items}, which the filters leave"
    return (
        f"{found.users:,} of {found.n_users:,} users, {items}, rankings of"
        f" {found.k}; {found.draws} drawn for each user and policy."
    )


def parameter(point: Point) -> str:
    """Format a policy's parameter."""
    if point.kind == "user_temperature":
        return f"{100 * point.parameter:.3g} %"
    return f"{point.parameter:.3g}"


def share_text(share: Share | None) -> str:
    """Format an ESS share, or say that there is none."""
    return "-" if share is None else share.text


def solution_text(found: Plan, solution: Solution) -> str:
    """Describe a solution in a sentence."""
    name, noun, _ = KINDS[solution.kind]
    point = solution.point
    where = f"{noun} {point.parameter:.4g}"
    own = solution.kind == "user_temperature"
    if own:
        where = f"an overlap of {point.overlap:.1%} for everyone"
    costs = (
        f"overlap {point.overlap:.1%}, loss {point.relative_loss:.2%},"
        f" perplexity {point.perplexity:.1f}"
    )
    if solution.figure == "ess":
        shares = [share for share in point.shares if share.prefix == solution.prefix]
        costs += f", ESS share {share_text(min(shares, key=lambda share: share.share))}"
    match solution.bound:
        case "none":
            text = f"not reachable; the best is {where}"
        case "at most":
            text = f"{'down' if own else 'up'} to {where}"
            if solution.start is not None:
                text = f"from {solution.start:.4g} {text}"
        case "at least":
            text = f"from {where} {'down' if own else 'up'}"
        case "any":
            text = f"anywhere, as far as {where}"
        case _:
            text = where
    if solution.figure == "ess" and len(solution.targets) < len(found.targets):
        costs += f"; for {', '.join(solution.targets)} alone"
    return f"{name}: {text} ({costs})"


def question(solution: Solution) -> str:
    """The question that a solution answers."""
    if solution.figure == "overlap":
        return f"To keep {solution.asked:.4g} of the deterministic ranking"
    places = "place" if solution.prefix == 1 else f"{solution.prefix} places"
    return f"To keep an ESS share of {solution.asked:.4g} at the first {places}, for every policy"


def choice_text(choice: Choice) -> str:
    """Describe a model's policy and its effects in sentences."""
    point, facts = choice.point, choice.to_dict()
    [temperature] = choice.policy.params.values()
    text = f"policy {short_name(choice.policy.inference_type)}, temperature {temperature:g}"
    if choice.factors is None:
        text += " for all users"
    else:
        text += (
            f", times a factor for each of {facts['users']:,} users (temperatures of"
            f" {facts['lowest']:.3g} to {facts['highest']:.3g})"
        )
    places = "one place" if choice.k == 1 else f"{choice.k} places"
    if choice.is_filtered:
        places += (
            f" among {choice.n_eligible:,} of {choice.n_items:,} items, those that the filters"
            " leave,"
        )
    text += (
        f". Of the deterministic ranking of {places} it keeps {point.overlap:.1%} on average; of"
        f" {choice.users:,} users looked at, 10 % keep less than {point.overlap_low:.1%}, half less"
        f" than {point.overlap_median:.1%}, 10 % more than {point.overlap_high:.1%}."
    )
    shares, figures = [], ""
    for label in dict.fromkeys(share.target for share in point.shares):
        first, whole = point.share(label, 1), point.share(label, choice.k)
        words = f"{share_text(first)} at the first place"
        figures += share_text(first) + (share_text(whole) if choice.k > 1 else "")
        if choice.k > 1:
            words += f" and {share_text(whole)} for the whole ranking"
        shares.append(f'"{label}": {words}')
    marks = "".join(f" {words}" for mark, words in MARKS.items() if mark in figures)
    return f"{text} ESS share of its log, to evaluate {'; '.join(shares)}.{marks}"


def not_reached_text(choice: Choice) -> str:
    """Describe the users who cannot get the requested overlap."""
    return (
        f"{choice.not_reached:,} users cannot have that overlap, because their best items have"
        " equal scores: they get the temperature that comes nearest."
    )
