"""Replays reference inputs, outputs and gradients through limbeck's own methods."""
