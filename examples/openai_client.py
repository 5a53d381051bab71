"""The `openai` package, unmodified, talks to a model on this machine.

smallthinker serve --memory 1GiB --port 8080
python examples/openai_client.py http://127.0.0.1:8080
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="unused")  # the server asks for none unless it was given one
model = client.models.list().data[0].id

question = [{"role": "user", "content": "What did the captain see?"}]
whole = client.chat.completions.create(model=model, messages=question, max_tokens=40, temperature=0)
print(whole.choices[0].message.content)
print(f"({whole.usage.completion_tokens} tokens, {whole.choices[0].finish_reason})")

for chunk in client.chat.completions.create(model=model, messages=question, max_tokens=40, temperature=0, stream=True):
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
print()
