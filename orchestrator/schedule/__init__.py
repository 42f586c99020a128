"""Which ready task goes to which worker, and what becomes of failures."""
