# cffi makes this module from csrc/ff_abi.h. What it holds has no types: _native.py, its one importer, adds them.
from typing import Any

ffi: Any
lib: Any
