"""Where it is kept: vectors in Redis, snapshots on disk."""
