"""Programs that print the tables of the documentation: overhead, detection, rescue and diagnosis."""
