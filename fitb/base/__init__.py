"""Foundations used by all other rooms; imports nothing else of fitb."""
