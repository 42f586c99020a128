"""What an unlearning changed, as data: applied to a warm model and undone."""
