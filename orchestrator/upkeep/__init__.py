"""What the store holds, what of it is waste, and what is damaged."""
