"""Training loops: what the engine needs of one (`base`), and an adapter for each."""
