"""Fine-tuning data sets, one file each."""
