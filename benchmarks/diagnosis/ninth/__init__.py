"""Every second run written for ``eighth``. These are only counted: the rules were not changed for any of them."""
