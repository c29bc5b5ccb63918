"""What is learned. Pure: no Kafka, Redis, files, clock or global randomness.

The path of a record, each border crossed once and downwards:

    KafkaSource.poll -> events.decode -> Duplicates.fresh -> Vocabulary.rows -> Learner.step
      -> RedisVectors.write -> Checkpoint.commit (Snapshots.save, then offsets)

This package imports nothing of its own here: the service must not load torch by naming it.
"""
