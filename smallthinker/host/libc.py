"""The C library, for what Python doesn't pass on; None where nothing here knows it."""

import ctypes
import sys

libc = ctypes.CDLL(None) if sys.platform == "linux" else None
