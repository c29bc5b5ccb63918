"""The HTTP service: recommendations and rankings from rows in Redis, and events for Kafka.

    request ──► requests ──► one read of Redis (user row, seen items) ──► ranking ──► answer
                                   items in memory ◄── change log (follower)

It imports neither torch nor numba, because it does not learn.
"""
