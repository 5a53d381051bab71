"""Ollama's own protocol over the same answers: what its requests mean, and what they are answered with."""
