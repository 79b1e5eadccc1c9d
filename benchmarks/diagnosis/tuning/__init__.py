"""The half that the authors of the rules may look at."""
