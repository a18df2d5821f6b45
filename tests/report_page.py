"""The data in a report's page, for tests."""

import base64
import gzip
import json
from typing import Any


def unpacked(html: str) -> Any:
    """Return the data of a page."""
    start = html.index('id="data"')
    text = html[html.index(">", start) + 1 : html.index("</script>", start)]
    return json.loads(gzip.decompress(base64.b64decode(text)))
