"""The endpoints of the OpenAI protocol, and what their answers look like."""
