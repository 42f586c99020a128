"""A sweep as values: what is asked for, before anything is planned."""
