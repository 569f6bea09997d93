"""What results and tables of the comparison call things."""

from typing import Final

NGINX: Final = "nginx"
FORGE_NAME: Final = "ContextForge"

HTTP_ONE: Final = "peers_http_1"
HTTP: Final = "peers_http"
STDIO: Final = "peers_stdio"

MANNER_COLUMNS: Final = {
    "counters": "counters kept",
    "same_ids": "same id twice",
    "progress": "progress",
    "elicitation": "elicitation",
    "cancellation": "cancellation",
}
