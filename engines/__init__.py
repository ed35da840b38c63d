"""The compiler and the runtimes: a model file becomes an engine, an engine becomes a session. Knows no HTTP."""

import os
import sys

# `import openvino` would start a thread that forks this process and tells its maker about it over the network; a fork
# of a process with threads can also hang. Without the package, OpenVINO takes its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# ONNX Runtime's wheels note each session in a data base in the home folder, with an identity, and send that to their
# maker: from 1.32 those for Linux, too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
