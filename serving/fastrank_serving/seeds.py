"""The seed of a request: given by the caller, derived from a secret and the request, or drawn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank.inputs import draw_seed
from fastrank.policies.spec import written
from fastrank.wire import SeedSource
from fastrank_serving.messages import Request, encoded
from fastrank_serving.secret import Secret

__all__ = ["derived_seed", "seed_of"]


def seed_of(
    secret: Secret | None,
    request: Request,
    query: npt.NDArray[np.float32],
    *,
    request_id: str,
    model_version: str,
    policy: fr.Policy,
) -> tuple[int, SeedSource]:
    """A request's seed, and its source as the log states it; arguments as in `derived_seed`."""
    if request.seed is not None:
        return request.seed, "caller"
    if secret is None:
        return draw_seed(), "server"
    seed = derived_seed(
        secret, request, query, request_id=request_id, model_version=model_version, policy=policy
    )
    return seed, "derived"


def derived_seed(
    secret: Secret,
    request: Request,
    query: npt.NDArray[np.float32],
    *,
    request_id: str,
    model_version: str,
    policy: fr.Policy,
) -> int:
    """The seed that all servers with the secret derive for a request: `Secret.number` of "seed" and

    1. ``user`` or ``query``,
    2. the user's id, or the vector as float32, lowest byte first,
    3. the request's id,
    4. the model's version,
    5. the policy in force, as written by `fastrank.policies.spec.written`,
    6. k, in digits,
    7. what else decides the list: `exclude`, `allow`, `after`, `score`, `params` and `rules`, as in
       the request, as a JSON array; named rules appear by their name.

    So a different question under the same request id has different noise. O(length of the request).

    Parameters
    ----------
    secret : Secret
    request : Request
        Its `k` is set.
    query : ndarray of float32, shape (d,)
        The vector to rank for; used if the request names no user.
    request_id, model_version : str
    policy : Policy
        With the user's own temperature.
    """
    is_user = request.user_id is not None
    return secret.number(
        "seed",
        "user" if is_user else "query",
        request.user_id or query.astype("<f4").tobytes(),
        request_id,
        model_version,
        written(policy),
        str(request.k),
        encoded([getattr(request, name) for name in _REST]),
    )


_REST = ("exclude", "allow", "after", "score", "params", "rules")
