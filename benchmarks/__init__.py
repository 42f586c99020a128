"""What Resurge claims about cost, each claim measured beside its alternative in one run."""
