"""For PyInstaller: of gguf, files are read; its converters, which want transformers and torch, are not used."""

excludedimports = ["transformers", "sentencepiece", "mistral_common", "torch", "PySide6"]
