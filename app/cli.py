"""The `bitserve` command: serve, models, infer. An error is one line and a non-zero exit; `--json` is one document."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app.settings import Settings

__all__ = ["app", "main"]

app = typer.Typer(
    help="Compile trained models and serve them in proven batches.", no_args_is_help=True, add_completion=False
)
Url = Annotated[str, typer.Option("--url", help="Server to ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 1."""
    typer.echo(f"bitserve: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


def _serve(**flags: Any) -> None:
    from pydantic import ValidationError

    as_json = flags.pop("json")
    try:
        settings = Settings(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        fail(f"setting {name}: {first['msg']}, got {first['input']!r}")
    if not settings.repository.is_dir():
        fail(f"the repository {settings.repository} is not a folder; make it, or name another with --repository")
    if as_json:
        shown = settings.model_dump(mode="json")
        print(json.dumps(shown), flush=True)
    from app.main import serve

    try:
        serve(settings)
    except SystemExit as ended:  # uvicorn's way to say that it could not start; its log says why
        raise typer.Exit(int(ended.code or 0)) from None


def _serve_command() -> Callable[..., None]:
    """The serve command's flags are the settings' fields, so that none can be forgotten."""
    parameters = []
    for name, field in Settings.model_fields.items():
        kinds: dict[Any, Any] = {bool: bool, int: int, float: float, Path: Path}
        plain = kinds.get(field.annotation, str)
        flag = f"--{name.replace('_', '-')}"
        names = [f"{flag}/--no-{name.replace('_', '-')}"] if plain is bool else [flag]
        default = field.default if name != "admin_token" else None
        option = typer.Option(*names, help=f"{field.description} [default: {default}]", show_default=False)
        annotation = Annotated[plain | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    as_json = typer.Option("--json", help="Print the settings in force as JSON on stdout, then serve.")
    parameters.append(
        inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, as_json])
    )

    def serve(**flags: Any) -> None:
        """Serve a model repository until SIGTERM."""
        _serve(**flags)

    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return serve


app.command("serve")(_serve_command())


@app.command()
def models(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the models of a running server and their states."""
    entries = _ask("POST", f"{url}/v2/repository/index")
    if as_json:
        print(json.dumps(entries))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "version", "state", "reason")
    for entry in entries:
        table.add_row(entry["name"], entry["version"], entry["state"], entry["reason"])
    Console().print(table)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="Model name.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="NAME=FILE.npy, FILE.npz (all inputs), or NAME=[[...]] as JSON."),
    ] = None,
    url: Url = DEFAULT_URL,
    version: Annotated[str, typer.Option(help="Version; the newest that serves if not given.")] = "",
    classes: Annotated[int, typer.Option(help="Print the best N classes of every output instead.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send one inference call to a running server and print the outputs."""
    from app.client import Mistake, call_model, load_inputs

    path = f"{url}/v2/models/{model}" + (f"/versions/{version}" if version else "")
    metadata = _ask("GET", path)
    try:
        arrays = load_inputs(inputs or [], metadata)
    except Mistake as mistake:
        fail(str(mistake))
    answer = call_model(_ask, path, metadata, arrays, classes, progress=not as_json)
    if as_json:
        print(json.dumps(answer))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("output", "datatype", "shape", "values")
    for output in answer["outputs"]:
        values = output["data"]
        shown = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values[:16])
        more = f", ... ({len(values)} in all)" if len(values) > 16 else ""
        table.add_row(output["name"], output["datatype"], str(output["shape"]), shown + more)
    Console().print(table)


def _ask(method: str, url: str, **keys: Any) -> Any:
    """One request; the JSON answer. Ends the command with the server's own words, or why there was no answer."""
    import httpx

    try:
        answer = httpx.request(method, url, timeout=60, **keys)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no answer from {url}: {error}; is the server running? start it with: bitserve serve")
    try:
        document = answer.json()
    except ValueError:
        fail(f"{url} answered {answer.status_code} with no JSON; is it a bitserve server?")
    if answer.status_code != 200:
        fail(
            document.get("error", f"{url} answered {answer.status_code}")
            if isinstance(document, dict)
            else str(document)
        )
    return document


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="bitserve")


if __name__ == "__main__":
    main()
