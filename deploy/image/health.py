"""HEALTHCHECK: whether the server in this container is live. The standard library alone: it runs every few seconds.

The port is that of `BITSERVE_PORT`; a container whose command has `--port` needs the variable as well.
"""

from __future__ import annotations

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("BITSERVE_PORT", "8000")), timeout=4)
try:
    connection.request("GET", "/v2/health/live")
    status = connection.getresponse().status
except OSError as error:
    sys.exit(f"no answer: {error}")
if status != 200:
    sys.exit(f"answered {status}")
