"""A job, opened once, and running it."""
