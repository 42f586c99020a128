"""Jobs on a cluster: which one, what is sent, what is seen of it from afar."""
