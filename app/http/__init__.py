"""HTTP: bytes to calls and back. Reaches serving only through its gateway."""
