"""Everything that is printed as a table or a tree; nothing else prints one."""
