"""The half that the authors of the rules never look at."""
