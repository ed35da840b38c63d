"""The compiler and the runtimes: a model file becomes an engine, an engine becomes a session. Knows no HTTP."""

import sys

# `import openvino` would start a thread that forks this process and tells its maker about it over the network; a fork
# of a process with threads can also hang. Without the package, OpenVINO takes its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
