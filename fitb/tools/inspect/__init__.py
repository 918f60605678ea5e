"""Inspection of a shard set: facts, statistics, masked examples, the loss of a model."""
