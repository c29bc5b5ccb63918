"""The HTTP process: recommend and rank from rows in Redis, and take events for Kafka.

    request ──► requests ──► one read of Redis (user row, seen items) ──► ranking ──► answer
                                   items in memory ◄── change log (follower)

Loads neither torch nor numba: nothing is learned here.
"""
