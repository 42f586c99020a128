"""Asks a study for points and runs what it answers."""
