"""Blocks of interactions, learned by many workers: see `phases`."""
