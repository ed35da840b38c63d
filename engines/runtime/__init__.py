"""What the server loads of `engines`: sessions over compiled plans. Never the compiler."""

from engines.hardware import usable_threads, visible_gpus

__all__ = ["usable_threads", "visible_gpus"]
