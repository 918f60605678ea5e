"""Filling blanks with a trained model."""
