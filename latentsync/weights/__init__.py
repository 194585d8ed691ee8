"""Weights on disk: where they are, how they are downloaded, read safely and loaded into the networks."""
