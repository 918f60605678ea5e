"""Configurations that ship with fitb; `--config NAME` finds them."""
