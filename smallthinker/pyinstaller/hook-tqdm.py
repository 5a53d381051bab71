"""For PyInstaller: bars are drawn in a terminal."""

excludedimports = ["pandas", "matplotlib", "tensorflow", "keras", "rich", "IPython", "ipywidgets"]
