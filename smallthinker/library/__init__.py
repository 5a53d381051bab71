"""The models that this user keeps: one folder, each model by a name of its own."""

from smallthinker.library.folder import DEMO, LibraryModel, models_folder
from smallthinker.library.library import Library

__all__ = ["DEMO", "Library", "LibraryModel", "models_folder"]
