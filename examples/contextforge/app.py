"""ContextForge with trunkline inside, where it is started by an application path: `uvicorn app:app`.

Nothing of ContextForge is changed on disk. `TRUNKLINE_CONTEXTFORGE=off` in the environment leaves it as it was.
"""

from trunkline.compat import contextforge

# Before mcpgateway.main is imported, which binds the names. What is given here wins over TRUNKLINE_* variables.
contextforge.install(reuse="user")

from mcpgateway.main import app  # noqa: E402

__all__ = ["app"]
