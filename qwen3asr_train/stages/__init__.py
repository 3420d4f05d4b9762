"""The stages: each module is one page saying what it trains, on what, with which loss."""
