"""The page of a report: whole in itself, and nothing that a model's file says becomes markup."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from engines.errors import PlanInvalid
from engines.report import Layer, PassChange, Report, TargetReport, WorstSample, decode_report, encode_report
from engines.report_figures import figures
from engines.report_page import page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} $x^2$ &lt; \u202egnp \x00\x1b \ud7ff"
SHOWN_EVIL = EVIL.replace("\u202e", "\ufffd").replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
TEXT_TAGS = (
    "html head meta title style body main header section h1 h2 h3 p dl dt dd div span small code details summary "
    "ul li br"
)
TABLE_TAGS, FIGURE_TAGS = "table thead tbody tr th td", "figure figcaption svg g defs path use text rect clippath"
TAGS = frozenset(f"{TEXT_TAGS} {TABLE_TAGS} {FIGURE_TAGS}".split())
VOID = frozenset({"br", "meta", "use", "path", "rect"})


class Parsed(HTMLParser):
    """Tags, attributes and the text outside of style; tags must be closed in the order in which they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "


def hostile(report: Report) -> Report:
    """Every text that may come from outside is `EVIL`."""
    replace = msgspec.structs.replace
    accuracy = replace(
        report.accuracy, output=EVIL, worst=(WorstSample(3, EVIL, None, 1e-3),), value=None, over_bound=1
    )
    return replace(
        report, model=EVIL, source_format=EVIL, accuracy=accuracy, operators={EVIL: 2}, inputs={EVIL: EVIL},
        outputs={EVIL: EVIL}, passes=(PassChange(EVIL, 2, 1, {EVIL: 1}, {EVIL: 1}, EVIL),), notes=(EVIL,),
        layers=tuple(Layer(EVIL, EVIL, EVIL, EVIL, f"{EVIL}{i}", i) for i in range(9)), spec={EVIL: {EVIL: [EVIL]}},
        candidates=(replace(report.candidates[0], reason=EVIL, passed=False, precision=EVIL, metric=EVIL),),
        stages_s={EVIL: 1.0, "read": 2.0}, tools={EVIL: EVIL}, hashes={EVIL: EVIL}, hardware=EVIL, batching=EVIL,
        batched=False, chosen=EVIL, created=EVIL, targets=(
            TargetReport(
                target=EVIL, made=True, chosen=EVIL, precision=EVIL, version=EVIL, gpus=(EVIL,), compatibility=EVIL,
                profiles=({EVIL: ((1,), (8,), (32,))},), network={EVIL: 2}, warnings=(EVIL,), binary=EVIL,
                plugins={EVIL: 1},
            ),
            TargetReport(target=EVIL, made=False, reason=EVIL),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("change", [lambda report: report, hostile])
def test_the_page_is_plain_markup_and_fetches_nothing(report: Report, change) -> None:  # type: ignore[no-untyped-def]
    text = page(change(report))
    parsed = Parsed(text)
    assert not parsed.open
    assert parsed.tags <= TAGS
    names = {name for name, _ in parsed.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "action", "srcdoc")]
    links = [value for name, value in parsed.attributes if name == "xlink:href"]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "@import" not in text
    assert "default-src 'none'" in text
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in links} <= set(ids)


def test_what_a_model_says_is_shown_as_text(report: Report) -> None:
    text = page(hostile(report))
    parsed = Parsed(text)
    assert parsed.text.count(SHOWN_EVIL) > 20
    assert "$x^2$" in parsed.text
    assert "<script" not in text


def test_every_part_of_a_report_is_told(report: Report) -> None:
    shown = " ".join(Parsed(page(report)).text.split())
    for section in ("What was read", "What was done to it", "Is it right", "How fast", "What it is made of"):
        assert section in shown
    assert "Checked, and chosen: fp32." in shown
    assert "All 64 samples agree" in shown
    assert f"top1 {report.accuracy.value:.6g} reference: {report.accuracy.reference_value:.6g}" in shown
    assert f"All {len(report.layers)} operations" in shown
    assert report.hashes["source"] in shown
    assert report.tools["openvino"] in shown
    assert all(layer.name in shown and layer.kernel in shown for layer in report.layers)
    assert str(report.accuracy.worst[0].index) in shown


def test_bad_news_are_said(report: Report) -> None:
    shown = " ".join(Parsed(page(hostile(report))).text.split())
    assert "No engine passed the checks" in shown
    assert "1 of 64 samples differ" in shown
    assert "not a number" in shown
    assert "not finite" in shown
    assert "one request at a time" in shown


def test_samples_that_were_left_out_are_said(report: Report) -> None:
    accuracy = msgspec.structs.replace(report.accuracy, available=5000)
    assert "There are 5000; these are the first" in page(msgspec.structs.replace(report, accuracy=accuracy))


def test_a_report_with_little_in_it_has_a_page(report: Report) -> None:
    accuracy = msgspec.structs.replace(report.accuracy, worst=(), shares=(0.0,), synthetic=True, decisions_changed=None)
    bare = msgspec.structs.replace(
        report, accuracy=accuracy, speeds=(), layers=(), stages_s={}, passes=(), spec={}, candidates=()
    )
    assert figures(bare) == {}
    shown = " ".join(Parsed(page(bare)).text.split())
    assert "drawn at random" in shown
    assert "No sample's answer differs at all" in shown


def test_a_huge_report_has_a_page_of_bounded_size(report: Report) -> None:
    long = Layer("n" * 5000, "Convolution", "fp32", "k" * 5000, "s" * 5000, 1.0)
    text = page(msgspec.structs.replace(report, layers=(long,) * 20_000))
    assert "And 17000 more" in text
    assert len(text) < 5_000_000


def test_figures_show_what_the_report_has(report: Report) -> None:
    drawn = figures(report)
    assert set(drawn) == {"stages", "speeds", "differences", "kernels"}
    assert f"worst: {report.accuracy.worst[0].index}" in drawn["differences"].svg
    assert f"{report.speeds[1].rows} rows a batch" in drawn["speeds"].svg
    kernel = max(report.layers, key=lambda layer: layer.time_us or 0).kernel
    assert kernel in drawn["kernels"].svg
    assert "var(--accent)" in drawn["kernels"].svg
    assert not re.search("#01020[3-7]", "".join(figure.svg for figure in drawn.values()))


def test_many_kernels_are_summed_up(report: Report) -> None:
    layers = tuple(Layer(f"n{i}", "Add", "fp32", f"kernel{i:02}", "", None) for i in range(30))
    svg = figures(msgspec.structs.replace(report, layers=layers))["kernels"].svg
    assert "22 others" in svg
    assert "kernel07" in svg
    assert "kernel08" not in svg


SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
from engines.report import decode_report
from engines.report_page import page
sys.stdout.buffer.write(page(decode_report(sys.stdin.buffer.read())).encode())
"""


def test_it_is_the_same_page_in_the_sandbox_with_an_empty_home(report: Report, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    command = [
        sys.executable, "-m", "engines.sandbox", f"--parent={os.getpid()}", f"--write={tmp_path}", "--", sys.executable,
        "-c", SCRIPT,
    ]  # fmt: skip
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command,
        input=encode_report(report),
        capture_output=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": root},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    start = done.stdout.index(b"<!doctype html>")  # the sandbox says before what this kernel does not have
    assert done.stdout[start:].decode() == page(report)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff"])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(PlanInvalid, match="the report is not readable"):
        decode_report(data)


def test_every_target_is_shown_with_what_came_of_it(report: Report) -> None:
    """And a page of one target alone says nothing of targets."""
    assert "Targets" not in Parsed(page(report)).text
    plan = TargetReport(
        target="tensorrt-rtx", made=True, chosen="int8, else fp16", precision="int8", size_bytes=1_258_291, seconds=0.2,
        version="1.7.1.116", gpus=("SM80", "SM86"), profiles=({"image": ((1, 3), (8, 3), (32, 3))},),
        network={"CONVOLUTION FP16": 6, "QUANTIZE INT8": 7}, binary="bits, by plugins",
        plugins={"BinaryConv2d": 1, "BinaryPack": 2}, binary_weight_bytes=44_200,
    )  # fmt: skip
    missing = TargetReport(target="tensorrt", made=False, reason="it needs a library that is not installed")
    text = Parsed(page(msgspec.structs.replace(report, targets=(*report.targets, plan, missing)))).text
    words = " ".join(text.split())
    assert (
        "tensorrt-rtx 1.7.1.116 int8, else fp16 int8 1.2 MiB 0.2 s SM80, SM86 with this version; not run here" in words
    )
    assert "tensorrt not made : it needs a library that is not installed" in words
    assert "CONVOLUTION FP16 \u00d7 6, QUANTIZE INT8 \u00d7 7" in words
    assert "image from [1, 3] to [32, 3] , fastest at [8, 3]" in words
    assert "The network of tensorrt-rtx for SM80, SM86, as it was parsed" in words
    assert "bits, by plugins: BinaryConv2d, BinaryPack \u00d7 2; 43.2 KiB of weights" in words
