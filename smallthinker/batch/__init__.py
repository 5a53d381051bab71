"""Many prompts from a file, answered in steps that they share, into another file.

Uses the public interface of `LLM` alone (and for OpenAI's batch files the server's application, without a socket).
"""
