"""A sweep's YAML to a Sweep, with every error in one report."""
