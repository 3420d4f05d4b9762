"""From anyone's recordings to shards: one module a source, one command each."""
