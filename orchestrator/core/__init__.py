"""What every room may use: identity, plug-ins, errors, and the files that both sides share."""
