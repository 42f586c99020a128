"""Records to measured values, tables and figures: files and frames, no terminal."""
