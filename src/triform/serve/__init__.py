"""Models behind HTTP, with OpenAI's API: `create_app` is the application, `run` serves it. Needs `pip install "triform[serve]"`."""

from .adapters import open_models
from .app import create_app
from .errors import ServeError
from .models import Judge, Models, Viewer, Writer, open_model
from .run import listen, run
from .settings import Settings, read_keys

__all__ = [
    "Judge", "Models", "ServeError", "Settings", "Viewer", "Writer", "create_app", "listen", "open_model", "open_models", "read_keys",
    "run",
]  # fmt: skip
