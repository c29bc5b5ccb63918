"""The learning core: no Kafka, Redis, files, wall clock or global random state.

A record passes these stages; each stage calls only the one below it:

    KafkaSource.poll -> events.decode -> Duplicates.fresh -> Vocabulary.rows -> Learner.step
      -> RedisVectors.write -> Checkpoint.commit (Snapshots.save, then offsets)

This file imports nothing, so that the HTTP service can import parts of the package without loading
torch.
"""
