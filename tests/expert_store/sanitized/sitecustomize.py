"""Takes smallthinker._storage from the file that STORAGE_MODULE names, in this process and those that it starts."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "smallthinker._storage":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["STORAGE_MODULE"])


sys.meta_path.insert(0, _Finder)
