"""Blanks filled over HTTP: a queue, one thread that owns the model, and a page for people."""
