"""Between people's text and tokens: tokenizer, chat template, special tokens, stop strings. Knows nothing of models."""
