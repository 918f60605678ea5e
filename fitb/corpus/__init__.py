"""Text in, Arrow shards and a manifest out; no torch."""
