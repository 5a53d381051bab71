"""Names of a store's files, for whoever looks for stores without reading any. A leaf: imports nothing."""

from __future__ import annotations

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
DENSE_FILE = "dense.safetensors"
EXPERTS_FILE = "experts.safetensors"
MANIFEST_FILE = "manifest.json"  # what the others were when they were written; not in older stores
REQUIRED_FILES = (CONFIG_FILE, TOKENIZER_FILE, DENSE_FILE, EXPERTS_FILE)
PROFILE_FILE = "disk-profile.json"  # what a probe of this machine found; no part of the model
HOT_FILE = "hot-experts.safetensors"  # which experts the last runs used most; no part of the model either
PREDICTOR_FILE = "predictor.safetensors"  # which experts are worth reading early; no output depends on it
PACKED_TOKENIZER_FILE = "tokenizer.packed"  # the vocabulary as arrays, made again where it is missing
_LEARNED_FILES = (PROFILE_FILE, HOT_FILE, PREDICTOR_FILE, PACKED_TOKENIZER_FILE)
ALL_FILES = (
    *REQUIRED_FILES,
    TOKENIZER_CONFIG_FILE,
    MANIFEST_FILE,
    *_LEARNED_FILES,
    *(f".{name}.*" for name in _LEARNED_FILES),
)
