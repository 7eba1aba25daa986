"""What a user has seen, from Redis, left out of their ranking by the request's `exclude`.

    python seen_from_redis.py ann              # a ranking without what ann has seen
    python seen_from_redis.py ann --shown 7,9  # ann has seen these

Each user has a sorted set "seen:USER", of item ids by the time when they were seen: the latest MOST
of them, for DAYS days. What was ranked counts as seen once a page has shown it, and not before.

Redis may be slow, or gone: then nothing is left out, and what was seen may come again. The log's
row says what was left out, so that the ranking's propensities are right either way.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_SECONDS = 0.05  # to connect, and to answer: what a page can wait for a list
SERVER_SECONDS = 2.0
MOST = 1000  # of a user; a server takes --max-ids of a request
DAYS = 30


def store_at(url: str) -> redis.Redis:
    """A client that gives up in time: by itself it would try again, for seconds."""
    return redis.Redis.from_url(
        url,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def seen_of(store: redis.Redis, user: str) -> list[str]:
    """Ids of what a user has seen, the latest first; none if Redis does not answer.

    They are text, and the server reads integers from it where its ids are integers.
    """
    try:
        return [str(item) for item in store.zrange(f"seen:{user}", 0, MOST - 1, desc=True)]
    except redis.RedisError:
        return []


def remember(store: redis.Redis, user: str, items: Sequence[int | str]) -> bool:
    """A page has shown these; False if Redis did not take it, so that it can be tried again."""
    key = f"seen:{user}"
    try:
        with store.pipeline() as all_or_none:
            all_or_none.zadd(key, {str(item): time.time() for item in items})
            all_or_none.zremrangebyrank(key, 0, -MOST - 1)
            all_or_none.expire(key, DAYS * 86_400)
            all_or_none.execute()
    except redis.RedisError:
        return False
    return True


def recommend(store: redis.Redis, server: str, user: str, **more: Any) -> Any:
    """The answer for a user, without what they have seen."""
    body = {"user_id": user, "exclude": seen_of(store, user), **more}
    asked = urllib.request.Request(
        f"{server}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=SERVER_SECONDS) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("user")
    parser.add_argument("--shown", help="ids, with commas")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    given = parser.parse_args()
    store = store_at(given.redis)
    if given.shown is not None:
        raise SystemExit(0 if remember(store, given.user, given.shown.split(",")) else 1)
    print(json.dumps(recommend(store, given.server, given.user), indent=2))


if __name__ == "__main__":
    main()
