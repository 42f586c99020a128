"""What plug-ins subclass, and what a base gives them."""
