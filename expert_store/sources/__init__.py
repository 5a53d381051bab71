"""Where weights come from: Hugging Face folders, GGUF and PyTorch files. Knows nothing about how a store keeps them."""
