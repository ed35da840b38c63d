"""`python -m engines build SOURCE --out DIR`: what the child processes run. One JSON line a stage on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engines.errors import EngineError
from engines.handover import FALLBACK, WHOLE, Plan, write_plan
from engines.manifest import encode
from engines.request import BuildRequest, GpusHere

REFUSED = 3
"""Exit code of a build that ended with a reason (printed as {"error": ...}), as against a crash."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="compile a model file and leave the plan in a folder")
    build.add_argument("source", type=Path)
    build.add_argument("--out", type=Path, required=True, help="an empty folder")
    build.add_argument(
        "--fallback", type=Path, help="another, for the FP32 plan where coarser engines are tried after it"
    )
    build.add_argument("--spec", type=Path, help="JSON: what is asked of the build")
    build.add_argument("--calibration", type=Path, help=".npz of input names to arrays, first axis = samples")
    build.add_argument("--validation", type=Path, help="the same, with labels or targets")
    build.add_argument("--threads", type=int, default=0, help="threads that the engine may use; 0 = all usable ones")
    build.add_argument("--gpus", default="", help="GPUs to build plans for, instead of those of the spec: sm86,sm89")
    build.add_argument("--here", default="", help="a target to build for, too, and its GPUs: tensorrt:sm86,sm89")
    build.add_argument("--timing-cache", help="a folder where TensorRT keeps the times of kernels")
    plan = commands.add_parser("plan", help="build a TensorRT plan of a graph, in this process")
    plan.add_argument("target", choices=("tensorrt-rtx", "tensorrt"))
    plan.add_argument("graph", type=Path, help="an ONNX file whose precision is settled")
    plan.add_argument("--options", type=Path, required=True, help="JSON: GPUs, profiles, memory")
    plan.add_argument("--out", type=Path, required=True, help="the file that gets the plan")
    inspect = commands.add_parser("inspect", help="print the manifest of a plan folder")
    inspect.add_argument("plan", type=Path)
    report = commands.add_parser("report", help="draw the page of a report")
    report.add_argument("report", type=Path, help="a plan's report.json")
    report.add_argument("--out", type=Path, required=True, help="the folder that gets the page")
    options = parser.parse_args(arguments)
    try:
        return {"build": _build, "plan": _plan, "inspect": _inspect, "report": _report}[options.command](options)
    except EngineError as error:
        _say(error=str(error))
    except OSError as error:  # its own text would name a path of this machine
        _say(error=error.strerror or type(error).__name__)
    return REFUSED


def _build(options: argparse.Namespace) -> int:
    from engines.build import build  # heavy: the compiler is imported only where it runs

    def keep(plan: Plan, *, is_whole: bool = False) -> None:
        folder = options.fallback
        if folder is not None and _is_left(plan, folder / WHOLE if is_whole else folder):
            _say(**{WHOLE if is_whole else FALLBACK: plan.manifest.key})

    target, _, names = options.here.partition(":")
    here = GpusHere(target, tuple(names.split(","))) if target else None
    request = BuildRequest(options.source, options.spec, options.calibration, options.validation, here)
    gpus = tuple(filter(None, options.gpus.split(",")))
    manifest = build(
        request, options.out, lambda stage, share: _say(stage=stage, share=f"{share:.3f}"), options.threads, keep,
        gpus, options.timing_cache,
    )  # fmt: skip
    _say(key=manifest.key)
    return 0


def _is_left(plan: Plan, folder: Path) -> bool:
    """A disk that has no room for two plans may have it for one: the build goes on."""
    try:
        folder.mkdir(exist_ok=True)
        write_plan(plan, folder)
    except OSError:
        for file in folder.glob("*"):
            file.unlink()
        return False
    return True


def _plan(options: argparse.Namespace) -> int:
    import msgspec

    from engines.targets.tensorrt import build_plan
    from engines.targets.tensorrt_options import PlanOptions
    from engines.targets.tensorrt_seam import library_of

    asked = msgspec.json.decode(options.options.read_bytes(), type=PlanOptions)
    library = library_of(options.target)
    plan, built = build_plan(library, options.graph.read_bytes(), asked, lambda share: _say(share=f"{share:.3f}"))
    options.out.write_bytes(plan)
    _say(built=msgspec.json.encode(built).decode())
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from engines.manifest import decode
    from engines.repository import MANIFEST_FILE

    sys.stdout.write(encode(decode((options.plan / MANIFEST_FILE).read_bytes())).decode())
    return 0


def _report(options: argparse.Namespace) -> int:
    from engines.report import decode_report
    from engines.report_page import page  # heavy: it draws
    from engines.repository import REPORT_PAGE

    drawn = page(decode_report(options.report.read_bytes()))
    (options.out / REPORT_PAGE).write_text(drawn, "utf-8")
    _say(page=REPORT_PAGE)
    return 0


def _say(**fields: str) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main())
