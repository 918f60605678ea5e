"""What is in a shard set: facts, statistics, masked examples, and a model's first answer."""
