"""Resurge's head: sweeps, plans, scheduling, tracking. Imports neither torch nor diffusers."""
