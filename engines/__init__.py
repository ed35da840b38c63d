"""The compiler and the runtimes: a model file becomes an engine, an engine becomes a session. Knows no HTTP."""
