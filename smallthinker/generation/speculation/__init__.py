"""Answers: who computes next, the next token, what ends an answer. Knows nothing about layers or files."""
