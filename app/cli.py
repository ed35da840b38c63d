"""The `bitserve` command and what it can do. An error is one line and a non-zero exit."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from app.cli_bench import bench_model
from app.cli_compile import compile_model
from app.cli_inspect import inspect_version
from app.cli_tune import tune_model
from app.ending import run_to_the_end
from app.settings import Settings
from app.terminal import ask, fail, print_table, read_settings
from engines.errors import EngineError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Compile trained models and serve them in proven batches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Url = Annotated[str, typer.Option("--url", help="Server to ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
DEFAULT_URL = "http://127.0.0.1:8000"
_METAVARS: dict[Any, str] = {
    int: "INTEGER",
    float: "NUMBER",
    Path: "FOLDER",
    Path | None: "FOLDER",
    Path | str: "FOLDER|URL",
}


def _serve(**flags: Any) -> None:
    as_json = flags.pop("json")
    settings = read_settings(**{key: value for key, value in flags.items() if value is not None})
    if settings.store is None and not settings.models_folder.is_dir():
        fail(f"the repository {settings.repository} is not a folder; make it, or name another with --repository")
    if as_json:
        shown = settings.model_dump(mode="json")
        print(json.dumps(shown), flush=True)
    from app.listening import CannotListen

    try:
        if settings.front_ends > 1:
            from app.front.supervisor import supervise

            raise typer.Exit(supervise(settings))
        from app.main import serve

        serve(settings)
    except CannotListen as error:
        fail(str(error))
    except SystemExit as ended:  # uvicorn's way to say that it could not start; its log says why
        raise typer.Exit(int(ended.code or 0)) from None


def _serve_command() -> Callable[..., None]:
    """The serve command's flags are the settings' fields, so that none can be forgotten."""
    parameters = []
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        is_flag = field.annotation is bool
        default = field.default if name != "admin_token" else None
        option = typer.Option(
            *([f"{flag}/--no-{flag[2:]}"] if is_flag else [flag]),
            help=f"{field.description} (default: {default})",
            show_default=False,
            metavar=None if is_flag else _METAVARS.get(field.annotation, "TEXT"),
        )
        # text, so that a bad value of a flag and of a variable are refused alike: by the settings
        annotation = Annotated[bool | None, option] if is_flag else Annotated[str | None, option]
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
app.command("compile")(compile_model)
app.command("inspect")(inspect_version)
app.command("tune")(tune_model)
app.command("bench")(bench_model)


@app.command("build", hidden=True)
def build(build: Annotated[str, typer.Argument(help="Id of a build that lies in the store.")]) -> None:
    """Carry out a build of the store that the settings name, as a Job of a cluster does."""
    settings = read_settings()
    if settings.store is None:
        fail("a build lies in a store: set BITSERVE_REPOSITORY to its address, such as s3://bucket/prefix")
    from app.builds.shared.job import run_job
    from app.logs import configure_logging

    configure_logging(settings.log_level)
    try:
        raise typer.Exit(run_job(settings, build))
    except EngineError as error:
        fail(str(error))


@app.command()
def models(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the models of a running server and their states."""
    entries = ask("POST", f"{url.rstrip('/')}/v2/repository/index")
    if as_json:
        print(json.dumps(entries))
        return
    try:
        rows = [(entry["name"], entry["version"], entry["state"], entry["reason"]) for entry in entries]
    except (TypeError, KeyError):
        fail(f"{url} answered something else than an index of models; is it a bitserve server?")
    print_table(("model", "version", "state", "reason"), rows)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="Model name.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="NAME=FILE.npy, FILE.npz or FILE.json (all inputs), or NAME=[[...]] as JSON. NAME= may go if there is "
            "one input.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    version: Annotated[str, typer.Option(help="Version; the newest that serves if not given.")] = "",
    classes: Annotated[int, typer.Option(help="Print the best N classes of every output instead.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send one inference call to a running server and print the outputs."""
    from app.client import Mistake, call_model, load_inputs

    if version and not (version.isascii() and version.isdigit()):
        fail(f"--version {version}: expected digits")
    path = f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version else "")
    metadata = ask("GET", path)
    try:
        arrays = load_inputs(inputs or [], metadata)
    except Mistake as mistake:
        fail(str(mistake))
    answer = call_model(ask, path, metadata, arrays, classes, progress=not as_json)
    if as_json:
        print(json.dumps(answer))
        return
    rows = []
    for output in answer["outputs"]:
        values = output["data"]
        shown = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values[:16])
        more = f", ... ({len(values)} in all)" if len(values) > 16 else ""
        rows.append((output["name"], output["datatype"], str(output["shape"]), shown + more))
    print_table(("output", "datatype", "shape", "values"), rows)


def console() -> NoReturn:
    """Entry point of the console script."""
    run_to_the_end(main)


def main() -> None:
    """The command, which ends with SystemExit. A wrong command line, too, is answered with one line."""
    try:
        code = app(prog_name="bitserve", standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:  # typer's own exception, which is click's up to typer 0.26
        if not hasattr(error, "format_message"):
            raise
        said = " ".join(error.format_message().split())
        if said:  # without arguments, the help has been printed already
            typer.echo(f"bitserve: {said.rstrip('.')}; see bitserve --help", err=True)
        code = getattr(error, "exit_code", 2)
    sys.exit(code)


if __name__ == "__main__":
    console()
