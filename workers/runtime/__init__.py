"""What any work in a worker may need: progress, pace, parts, causes of failure."""
