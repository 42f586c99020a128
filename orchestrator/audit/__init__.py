"""One trial looked at closely: found, made again, compared with another."""
