"""Pictures with captions: read, prepared as Parquet, measured against a concept."""
