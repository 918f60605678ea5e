"""Measurements that anybody can repeat: medians with their spread, taken side by side."""
