"""The report: one page, well-formed, self-contained, complete, and true to the planner's own figures."""

import re
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq import Batch, Plan, Serving
from llmpq.answers.pareto import ParetoPoint
from llmpq.evaluation import Estimate
from llmpq.hardware.cluster import Cluster
from llmpq.plan import DeviceMemory, Optimality, Pipeline, Prediction, Quality, Stage
from llmpq.planning.stage_seconds import StageSeconds, stage_seconds
from llmpq.profiling.validation import Comparison, Validation
from llmpq.quality_check import QualityCheck, Round
from llmpq.report import front
from llmpq.report.gantt import schedule_section
from llmpq.report.how_to_run import Engines
from llmpq.report.markup import tag, text
from llmpq.report.page import Report, render
from llmpq.report.spans import ROUNDS, decode_spans, prefill_spans
from llmpq.runtime.simulate import Span
from llmpq.serialize import dumps, loads
from tests.conftest import CommandLine, Golden
from tests.page_outline import PageOutline
from tests.values import WORKLOAD, llama_graph, two_cpus

MIB = 2**20
HOSTILE = """</title><script>alert('x')</script>"&amp;<img src=x onerror=y>"""
CHECK = QualityCheck(
    0.0198, (Round(0.0198, 0.0125, Estimate(0.0101, 0.0004)),), True, "tune.txt", Estimate(0.0111, None), "report.txt"
)


@pytest.fixture
def plan() -> Plan:
    """Written by hand, so that no golden changes with the costs."""
    stages = (Stage("CPU:1", 0, ("16",)), Stage("CPU:0", 1, ("w8a16", "w8a16", "w4a16")))
    memory = (
        DeviceMemory("CPU:1", 3 * MIB, MIB, MIB // 2, MIB // 4, 0, 64 * MIB),
        DeviceMemory("CPU:0", 5 * MIB, 3 * MIB, MIB // 2, 0, MIB // 4, 64 * MIB),
    )
    return Plan(
        model="tiny",
        compute_dtype="bfloat16",
        workload=WORKLOAD,
        cluster=two_cpus(),
        pipelines=(Pipeline(stages, 2, 4),),
        prediction=Prediction(1.25, 2.5, memory, "roofline"),
        quality=Quality(0.0125, 0.0198, "prior"),
        optimality=Optimality(3.75, 3.7, False, "highs"),
        constraints=("layers[0].bits >= 8",),
    )


@pytest.fixture
def full(plan: Plan) -> Report:
    """A report with everything in it."""
    row = Comparison("decode", "CPU:0", "seconds", 0.5, 0.75, 0.8, 1.2)
    validation = Validation("tiny", WORKLOAD, "roofline", (row,), ())
    engines: Engines = {"llmpq": True, "vllm": "no head of 64"}
    return Report(plan, llama_graph(), check=CHECK, engines=engines, validation=validation, front=front_of(plan))


def front_of(plan: Plan) -> tuple[ParetoPoint, ...]:
    """Twice as fast at twice the loss, not proven."""
    return (
        ParetoPoint(0.0125, 0.0125, plan.tokens_per_s, 3 * MIB, True, plan),
        ParetoPoint(None, 0.025, 2 * plan.tokens_per_s, 2 * MIB, False, plan),
    )


def test_the_outline_of_a_page_without_times(plan: Plan, golden: Golden) -> None:
    page = render(Report(plan, None, "the model is not here"))
    golden("report_tiny.txt", "\n".join(PageOutline(page).lines))


def test_a_page_refers_to_nothing_outside_of_itself(full: Report) -> None:
    page = render(full)
    assert not re.search(r"https?:|//[a-z]|@import|<(script|link|img|iframe|object)|\ssrc=", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert all(str(found["href"]).startswith("#") for _, found in PageOutline(page).elements if "href" in found)


def test_the_front_is_drawn_to_scale_with_the_plan_of_the_page_on_it(plan: Plan) -> None:
    page = PageOutline(render(Report(plan, None, front=front_of(plan))))
    dots = [(float(str(found["cx"])), float(str(found["cy"]))) for name, found in page.elements if name == "circle"]
    (cross,) = (str(found["d"]) for _, found in page.elements if found.get("class") == "here")
    bottom, (half, full) = front.HEIGHT - front.BELOW, dots
    assert full == (front.WIDTH - front.EDGE, front.EDGE)
    assert half == ((front.LEFT + full[0]) / 2, (bottom + full[1]) / 2)
    assert cross == f"M{half[0] - 8} {half[1]}H{half[0] + 8}M{half[0]} {half[1] - 8}V{half[1] + 8}"
    assert f"{2 * plan.tokens_per_s:.4g}, not proven" in page.text


def test_every_reference_within_a_page_has_its_target(full: Report) -> None:
    page = render(full)
    names = [str(found["id"]) for _, found in PageOutline(page).elements if "id" in found]
    assert len(names) == len(set(names))
    wanted = re.findall(r'href="#([^"]*)"|aria-labelledby="([^"]*)"|url\(#([^)]*)\)', page)
    assert {next(filter(None, found)) for found in wanted} <= set(names)


def test_devices_layers_options_and_rules_are_all_there(full: Report) -> None:
    outline = PageOutline(render(full))
    cells = re.findall(r"<li class=o-\S+>\n\s*<b>\n\s*(\d+)\n\s*(\S+)", "\n".join(outline.lines))
    assert cells == [("0", "16"), ("1", "w8a16"), ("2", "w8a16"), ("3", "w4a16")]
    for said in ("CPU:0", "CPU:1", "layers[0].bits >= 8", "+0.0101 ± 0.0004", "1.500", "outside of its band", "no head of 64"):
        assert said in outline.text, said


def test_a_device_that_is_left_out_is_named_as_such(plan: Plan) -> None:
    wider = replace(plan, cluster=Cluster.load("2xT4,1xL4"), pipelines=(Pipeline((Stage("T4:0", 0, ("16",) * 4),), 2, 4),))
    memory = (replace(plan.prediction.memory[0], device="T4:0"),)
    page = render(Report(replace(wider, prediction=replace(plan.prediction, memory=memory)), llama_graph()))
    assert PageOutline(page).text.count("Not used: T4:1, L4:0.") == 2


def test_charts_are_named_for_screen_readers_and_can_be_scrolled_by_keyboard(full: Report) -> None:
    elements = PageOutline(render(full)).elements
    for name, attributes in elements:
        if name == "svg":
            hidden = attributes.get("aria-hidden") == "true"
            assert hidden or (attributes["role"] == "img" and attributes["aria-label"])
        if attributes.get("class") == "scroll":
            assert (attributes["role"], attributes["tabindex"]) == ("region", "0") and attributes["aria-label"]
    headings = [int(name[1]) for name, _ in elements if re.fullmatch(r"h\d", name)]
    assert headings.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(headings))


def test_a_hostile_name_stays_text(full: Report) -> None:
    plan = replace(full.plan, model=HOSTILE, constraints=(HOSTILE,), cluster=replace(full.plan.cluster, name=HOSTILE))
    outline = PageOutline(render(replace(full, plan=plan, engines={HOSTILE: HOSTILE})))
    assert not {"script", "img"} & {name for name, _ in outline.elements}
    assert outline.text.count(HOSTILE) == 6  # title and heading, cluster, rule, engine and its reason


@given(st.text(), st.text())
def test_any_text_and_attribute_come_back_from_a_parser(content: str, attribute: str) -> None:
    found: list[tuple[str, str | None]] = []

    class Reader(PageOutline):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            super().handle_starttag(tag, attrs)
            found.extend(attrs)

    made = str(tag("p", content, title=attribute))
    Reader(made)
    assert found == [("title", attribute)]
    assert "<" not in text(content) and '"' not in text(attribute)


def test_the_same_plan_gives_the_same_bytes(full: Report) -> None:
    assert render(full) == render(replace(full, plan=loads(Plan, dumps(full.plan), "plan.json")))


def test_eighty_layers_on_eight_devices_stay_below_200_kb(plan: Plan) -> None:
    options = ("16", "w8a8", "w8a16", "w4a16")
    stages = tuple(Stage(f"T4:{j}", 10 * j, tuple(options[i % 4] for i in range(10))) for j in range(8))
    memory = tuple(replace(plan.prediction.memory[0], device=stage.device) for stage in stages)
    large = replace(
        plan,
        workload=Batch(512, 512, 100),
        cluster=Cluster.load("8xT4"),
        pipelines=(Pipeline(stages, 1, 32),),
        prediction=replace(plan.prediction, memory=memory),
    )
    assert len(render(Report(large, llama_graph(80), check=CHECK)).encode()) < 200_000


def batch_of(batch_size: int, prefill: int, decode: int, plan: Plan) -> Plan:
    return replace(plan, workload=Batch(batch_size, 16, 8), pipelines=(Pipeline(plan.stages, prefill, decode),))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 12),
    st.lists(st.floats(0.01, 1.0), min_size=8, max_size=8),
)
def test_charts_end_when_the_planners_formulas_say(share: int, prefill: int, batch_size: int, times: list[float]) -> None:
    stages = (Stage("CPU:1", 0, ("16",)), Stage("CPU:0", 1, ("16",)))
    drawn = Plan(
        model="tiny",
        compute_dtype="bfloat16",
        workload=Batch(batch_size, 16, 8),
        cluster=two_cpus(),
        pipelines=(Pipeline(stages, prefill, prefill * share),),
        prediction=Prediction(1.0, 1.0, (), "roofline"),
        quality=Quality(0.0, None, "prior"),
        optimality=Optimality(1.0, None, False, "hand"),
    )
    seconds = StageSeconds(*((times[i], times[i + 1]) for i in range(0, 8, 2)))
    both = [a + b for a, b in zip(seconds.prefill, seconds.prefill_link)]
    count = -(-batch_size // prefill)
    assert end(prefill_spans(drawn, seconds)) == pytest.approx(sum(both) + (count - 1) * max(both))
    both, count = [a + b for a, b in zip(seconds.decode, seconds.decode_link)], -(-batch_size // (prefill * share))
    trip = max(sum(both), count * max(both))
    assert end(decode_spans(drawn, seconds)) == pytest.approx((ROUNDS - 1) * trip + sum(both) + (count - 1) * max(both))


def end(spans: tuple[Span, ...]) -> float:
    return max(span.end_s for span in spans)


def test_stage_seconds_add_up_to_what_was_planned() -> None:
    from llmpq.compiler import plan

    program = plan("demo", two_cpus("5 MiB", "5 MiB"), Batch(8, 64, 32), indicator="prior", theta=0.0)
    made: Plan = program.require("plan")
    seconds = stage_seconds(made, program.graph)
    prefill, decode = (
        [a + b for a, b in zip(compute, link)]
        for compute, link in ((seconds.prefill, seconds.prefill_link), (seconds.decode, seconds.decode_link))
    )
    passes, flights = -(-8 // made.pipeline.prefill_micro_batch), -(-8 // made.pipeline.decode_micro_batch)
    assert len(made.stages) == 2
    assert sum(prefill) + (passes - 1) * max(prefill) == pytest.approx(made.prediction.prefill_s)
    assert 31 * max(sum(decode), flights * max(decode)) == pytest.approx(made.prediction.decode_s)


def test_a_plan_for_serving_shows_steps_that_take_what_was_planned() -> None:
    from llmpq.compiler import plan

    program = plan("qwen2.5-7b", "1xA100-80,1xL4", Serving(4.0, 512, 100), engine="vllm", time_limit_s=10.0)
    made: Plan = program.require("plan")
    spans = decode_spans(made, stage_seconds(made, program.graph))
    first = [span.start_s for span in spans if span.stage == 0][made.load.in_flight :]  # once the pipeline is full
    assert (first[-1] - first[0]) / (len(first) - 1) * made.load.in_flight == pytest.approx(made.load.tpot_s)
    outline = PageOutline(render(Report(made, program.graph)))
    assert "llmpq serve OUT" in outline.text and "tokens/s" in outline.text


def test_an_encoder_has_no_chart_of_decoding(plan: Plan) -> None:
    encoder = replace(plan, workload=Batch(8, 64, 1))
    seconds = stage_seconds(encoder, llama_graph())
    assert "Prefill" in schedule_section(encoder, seconds) and "Decode" not in schedule_section(encoder, seconds)
    assert "The slowest stage of prefill" in render(Report(encoder, llama_graph()))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_is_readable_on_every_colour_behind_it(scheme: int) -> None:
    style = (files("llmpq") / "data" / "report.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--([a-z0-9_]+):(#[0-9a-f]+)", block)) for block in re.findall(r":root\{([^}]*)\}", style)]
    colours = schemes[0] | schemes[scheme]
    behind = [name for name in colours if re.match(r"o[0-9a-z]+$", name)] + ["bg", "soft"]
    assert len(behind) == 9
    for name in behind:
        assert contrast(colours["fg"], colours[name]) >= 7, name
    for name in ("mute", "link"):
        assert contrast(colours[name], colours["bg"]) >= 4.5, name
    for name in ("g0", "g1"):
        assert contrast(colours["in"], colours[name]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances, WCAG 2."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def test_the_command_writes_the_page_of_a_plan(cli: CommandLine, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(dumps(replace(plan, model="demo-that-is-not-there")))
    done = cli("report", tmp_path / "plan.json", "-o", tmp_path / "page.html", "--json")
    assert (done.code, done.err) == (0, "")
    outline = PageOutline((tmp_path / "page.html").read_text())
    assert "There is no chart: no directory, hub id or bundled configuration" in outline.text
    assert (cli("report", tmp_path / "none.json", "-o", tmp_path / "page.html")).code == 2


def test_a_plan_that_rests_on_a_profile_asks_for_it(cli: CommandLine, plan: Plan, tmp_path: Path) -> None:
    measured = replace(plan, model="demo", prediction=replace(plan.prediction, provenance="measured, within 90% to 110%"))
    (tmp_path / "plan.json").write_text(dumps(measured))
    assert cli("report", tmp_path / "plan.json", "-o", tmp_path / "page.html").code == 0
    assert "give it by --profile FILE" in (tmp_path / "page.html").read_text()


def test_compile_writes_the_page_that_the_command_writes(cli: CommandLine, mixed_out: Path, tmp_path: Path) -> None:
    assert cli("report", mixed_out, "-o", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert (mixed_out / "report.html").read_text() == page
    assert "llmpq run . --prompt" in page and "There is no chart" not in page
