"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder. Knows nothing about weights."""
