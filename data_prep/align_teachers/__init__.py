"""Word times from teachers: read from files, run on the spot, checked, and put into shards."""
