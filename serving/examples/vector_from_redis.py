"""A user's vector from Redis, which another job keeps fresh, in front of a server.

    python vector_from_redis.py ann --space 2026-12-01

The vector is float32, the lowest byte first, under "vector:SPACE:USER". A space is one training:
vectors of another space fit the items of the serving model no better than random ones, and nobody
would notice.

Redis may be slow, or gone, and the user may have none there: then the model's own vector is taken.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import urllib.request
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_SECONDS = 0.05  # to connect, and to answer: what a page can wait for a vector
SERVER_SECONDS = 2.0


def store_at(url: str) -> redis.Redis:
    """A client that gives up in time: by itself it would try again, for seconds."""
    return redis.Redis.from_url(
        url,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def vector_of(store: redis.Redis, space: str, user: str) -> list[float] | None:
    """The vector that Redis has; None if it has none that can be used, or does not answer."""
    try:
        content = store.get(f"vector:{space}:{user}")
    except redis.RedisError:
        return None
    if not isinstance(content, bytes) or not content or len(content) % 4:
        return None
    vector = list(struct.unpack(f"<{len(content) // 4}f", content))
    return vector if all(map(math.isfinite, vector)) else None


def recommend(store: redis.Redis, server: str, space: str, user: str, **more: Any) -> Any:
    """The answer for a user; its `request_id` joins the log's row with what the user does.

    A row of a ranking by `query` has no user, since the model may not know them: to evaluate by
    users, keep whose ranking it was by request_id.
    """
    vector = vector_of(store, space, user)
    body = {"user_id": user} if vector is None else {"query": vector}
    asked = urllib.request.Request(
        f"{server}/invocations",
        json.dumps({**body, **more}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=SERVER_SECONDS) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("user")
    parser.add_argument("--space", required=True)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    given = parser.parse_args()
    answer = recommend(store_at(given.redis), given.server, given.space, given.user)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
