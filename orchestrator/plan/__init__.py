"""Trials to stages, stages to tasks, and what people call them."""
