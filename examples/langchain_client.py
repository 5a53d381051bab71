"""A LangChain chain over a model on this machine, once whole and once as it is written.

smallthinker serve --memory 1GiB --port 8080
python examples/langchain_client.py http://127.0.0.1:8080
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

# a server with one model answers for any name
model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="unused", model="demo", temperature=0, max_tokens=40)
prompt = ChatPromptTemplate.from_messages([("system", "You tell of {place}."), ("user", "{question}")])
chain = prompt | model | StrOutputParser()

inputs = {"place": "the sea", "question": "What did the captain see?"}
print(chain.invoke(inputs))
for piece in chain.stream(inputs):
    print(piece, end="", flush=True)
print()
