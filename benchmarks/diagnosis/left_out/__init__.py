"""Every second run written for ``seventh``: only counted, never looked at by case while rules were changed."""
