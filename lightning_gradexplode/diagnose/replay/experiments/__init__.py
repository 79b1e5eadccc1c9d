"""Variants of a step on copies of the module, which distinguish between causes."""
