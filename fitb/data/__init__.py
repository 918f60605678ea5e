"""Which rows, in which order, masked how: pure functions of a seed and a position."""
