"""Strategies, callbacks, checkpoints and logging around Lightning."""
