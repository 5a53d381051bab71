"""An HTTP server that speaks the OpenAI protocol for one model, and shows it on a page of its own.

Stands on `llm` and is imported by nothing but its command: needs the extra `serve`. Prints nothing.
"""
