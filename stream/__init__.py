"""The learning core: no Kafka, Redis, wall clock or global random state.

A poll passes these stages, in this order; what cannot be decoded or learned becomes a dead letter:

    KafkaSource.poll -> events.decode -> Duplicates.fresh -> Vocabulary.ensure_rows -> Joiner.join
      -> Learner.step -> Publisher (rows to Redis) -> Snapshots.save, then Kafka's own offsets

This file imports nothing, so that the HTTP service can import parts of the package without loading
torch.
"""
