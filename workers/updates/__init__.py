"""Changes of weights that were made elsewhere, one file each."""
