"""From shards on disk to batches of tensors."""
