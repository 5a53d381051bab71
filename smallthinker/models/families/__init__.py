"""One file a family: its configuration keys, its GGUF metadata and its tensors' names, mapped to the description."""
