"""Weights that others made: where they are, what they are called, and how they fit a model."""
