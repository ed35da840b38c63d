"""The service: HTTP, queues, batching, metrics. Loads compiled plans; never the compiler."""
