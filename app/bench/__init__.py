"""Load on a running server over HTTP, and what it measured. Known to commands alone: no server loads it."""
