"""A second set of cases, of other models, data and situations than the first, that the rules were mended on."""
