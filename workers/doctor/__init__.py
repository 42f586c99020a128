"""What a base is, whether it works, and what memory it takes."""
