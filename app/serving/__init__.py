"""Queues, batches and instances behind one door (`gateway`). Knows no HTTP and imports no web library."""
