"""The format of shard sets: written, opened, memory-mapped, fetched and cached; no torch."""
