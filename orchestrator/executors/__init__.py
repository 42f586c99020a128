"""What starts tasks, one file each: inline, ray, simulated."""
