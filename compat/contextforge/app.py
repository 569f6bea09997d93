"""ContextForge's application, with trunkline inside: `uvicorn trunkline.compat.contextforge.app:app`."""

import importlib

from . import install
from .installation import MAIN

install()
app = importlib.import_module(MAIN).app
