"""A third set of cases, in the manner of public reports; its figures before any rule was mended on it are kept."""
