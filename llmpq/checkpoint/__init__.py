"""Checkpoints: the original read tensor by tensor, the compiled one written as one shard per stage."""
