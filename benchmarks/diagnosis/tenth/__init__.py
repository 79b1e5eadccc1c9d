"""Six runs after public reports in the order in which searches return them, written before reading the rules."""
