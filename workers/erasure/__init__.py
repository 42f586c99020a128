"""What several unlearning methods share."""
