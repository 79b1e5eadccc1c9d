"""The processes of a run: process group, exchange of each step, layout of shards, results of spawned processes."""
