"""What Resurge claims about cost and intervals, each claim beside its alternative in one run."""
