"""Storage: vectors in Redis, snapshots on disk."""
