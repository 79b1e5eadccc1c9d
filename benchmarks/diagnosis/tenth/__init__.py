"""Six runs after public reports that say enough to repeat them, written before any rule was read."""
