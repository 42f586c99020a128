"""YAML with the position of every value, checked field by field. Knows no sweep."""
