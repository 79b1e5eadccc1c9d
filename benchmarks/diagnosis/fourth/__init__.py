"""A fourth set of cases, after public reports; its figures before any rule was mended on it are kept."""
