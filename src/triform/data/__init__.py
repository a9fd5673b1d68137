"""Data: the catalogue, sources, token shards, packing and the order of samples."""
