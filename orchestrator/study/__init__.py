"""An Optuna study: its storage, its owner, what it tried, and what it found."""
