"""For PyInstaller, which reads this where a program imports smallthinker: the package's names are imported when they
are first used, which it can't see, and its files are read by path; as are the demo model's, where that is installed."""

from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, copy_metadata

from smallthinker import _EXPORTS

# What the names lead to, it finds by itself.
hiddenimports = [*sorted(set(_EXPORTS.values())), "smallthinker.errors"]
datas = collect_data_files("smallthinker") + copy_metadata("smallthinker")
if find_spec("smallthinker_demo") is not None:
    hiddenimports.append("smallthinker_demo")
    datas += collect_data_files("smallthinker_demo")
# Of commands that draw, train and compare.
excludedimports = ["matplotlib", "torch", "transformers", "llm", "IPython", "jsonschema"]
