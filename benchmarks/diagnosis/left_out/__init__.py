"""Every second run written for ``seventh``.

First counted before any rule was changed for it: 26 of 38 right, 3 wrong, 5 unknown, 4 without a diagnosis, 19 of 33
saved. Rules were improved on it afterwards.
"""
