"""A copy of the user's module, with replacements of its trainer, loggers and optimizers."""
