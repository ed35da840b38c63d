"""Builds run in child processes: the server never loads the compiler."""
