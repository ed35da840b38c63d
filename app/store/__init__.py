"""Models in an object store: published there once, mirrored on the disk of every server that serves them."""
