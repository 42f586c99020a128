"""The content-addressed store: records and objects by digest, on a folder or a bucket."""
