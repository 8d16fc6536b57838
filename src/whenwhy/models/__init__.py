"""Sequence models: what they promise, recurrent cells, checkpoints, training."""
