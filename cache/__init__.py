"""What stays in memory: the expert cache, its eviction policies, the KV cache."""
