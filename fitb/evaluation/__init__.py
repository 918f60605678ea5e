"""Evaluation of models on masked positions, with confidence intervals."""
