"""What several metrics share: judges, features, distances between sets of pictures."""
