"""Run the application under uvicorn's own httptools protocol: python -m tests.hostile.asgi_server REPOSITORY PORT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn

from app.main import create_app
from app.settings import Settings
from tests.simulated.serve import run
from tests.support.servers import ON_GPU


async def _serve(repository: Path, port: int, flags: list[str]) -> None:
    extra = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    app = create_app(Settings(repository=repository, port=port, **extra))
    config = uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="on", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve()


def _main() -> None:
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))


if __name__ == "__main__":
    run(_main) if ON_GPU else _main()
