"""The terminal report: what it says, and that it holds in every width, encoding and colour."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment as Run
from rich.segment import Segments

from holitom_cli.errors import UsageError, VideoError
from holitom_cli.report.shapes import Strip, collapse, edges, labels
from holitom_cli.report.terminal import (
    doctor_table,
    error_line,
    methods_table,
    report,
    segment_strip,
    summary,
    warning_line,
)
from holitom_cli.types import Frames, Memory, Segment, Timings, TokenCounts
from tests.report.factory import (
    STAGES,
    make_answer,
    make_baseline,
    make_frames,
    make_model,
    make_segments,
    make_video,
)

HOSTILE = "a[bold]b[/] [/] :boom: \x1b[31mred\x1b[0m\nnext \x07\u202e"
SHOWN = "a[bold]b[/] [/] :boom: \\x1b[31mred\\x1b[0m\\nnext \\x07\\u202e"
WIDTHS = (40, 80, 200)


def render(body: RenderableType, width: int = 80, **options: Any) -> str:
    """What reaches a file or, with options, a terminal; the machine's own environment plays no part."""
    console = Console(file=io.StringIO(), width=width, _environ={}, **options)
    console.print(body, crop=False)  # what is too wide must show
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def words(body: RenderableType, width: int = 200) -> str:
    """The rendered text with every run of blanks as one, so that columns do not matter."""
    return " ".join(render(body, width).split())


def widest(body: RenderableType, width: int) -> int:
    return max(cell_len(line) for line in render(body, width).splitlines())


def line_with(label: str, page: str) -> str:
    (line,) = (line for line in page.splitlines() if line.strip().startswith(label))
    return line


def varied() -> Iterator[RenderableType]:
    answer, hostile = make_answer(), make_answer(question=HOSTILE, text=HOSTILE, warnings=(HOSTILE * 5,))
    many = make_answer(segments=make_segments(300, 1000, 30_000))
    memory = Frames(np.zeros((1, 4, 6, 3), np.uint8), np.array([0.0]))
    yield report([answer])
    yield report([answer], [make_baseline(text="No.\nNot at all.")])
    yield report([answer, hostile], [make_baseline(), make_baseline()])
    yield report([many])
    yield report([make_answer(frames=memory, segments=make_segments(1, 1, 30))])
    yield report([make_answer(frames=make_frames(video=make_video(path="卵" * 90)), question="🥚 " * 90)])
    yield segment_strip(make_segments(500, 500, 500))
    yield error_line(VideoError("x" * 300, "y" * 300))
    yield doctor_table({"models present": {"llava-hf/llava-onevision-qwen2-7b-ov-hf": "15.0 GiB, complete"}})
    yield methods_table([{"method": "holitom", "what it does": "merges " * 20}])


# --- layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_console(width: int) -> None:
    for body in varied():
        assert widest(body, width) <= width


def test_a_line_that_is_too_wide_would_be_seen() -> None:
    assert widest(Segments([Run("x" * 300)]), 80) == 300


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(width: int) -> None:
    """Folded, not cut: without blanks and line ends, every character of a value is there."""
    model = make_model(id="hub/" + "m" * 120)
    page = render(report([make_answer(model=model)], [make_baseline()]), width)
    assert "…" not in page
    squeezed = "".join(page.split())
    assert "m" * 120 in squeezed
    for figure in ("40.8TFLOP", "9.49x", "14.9GiB", "104.2tokens/s", "6,272"):
        assert figure in squeezed


def test_text_reaches_a_pipe_without_escape_codes() -> None:
    for body in varied():
        assert "\x1b" not in render(body)


def test_colour_can_be_switched_off() -> None:
    colours = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;|m)")
    body = report([make_answer(warnings=("noise",))], [make_baseline()])
    terminal: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
    assert colours.search(render(body, **terminal))  # the pattern finds colours where there are some
    assert not colours.search(render(body, **terminal, no_color=True))
    dumb = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "dumb"})
    with dumb.capture() as capture:
        dumb.print(body)
    assert "\x1b" not in capture.get()


def in_encoding(body: RenderableType, encoding: str) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(file=file, width=80, _environ={}).print(body)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_console_without_block_characters_gets_others_of_the_same_width() -> None:
    body = report([make_answer(question="Où?", frames=make_frames(video=make_video(path="卵.mp4")))])
    page = in_encoding(body, "ascii")
    assert "####" in line_with("temporal merge", page)
    assert re.search(r"=+-+=+-+", line_with("frames  =", page))
    assert "O??" in page  # one column for ù
    assert "??.mp4" in page  # two for 卵
    unicode_page = render(body)
    assert [cell_len(line) for line in page.splitlines()] == [cell_len(line) for line in unicode_page.splitlines()]
    assert "Où?" in in_encoding(body, "latin-1")
    assert "████" in in_encoding(body, "cp437")  # it has the blocks


def test_the_same_strip_without_that_care_cannot_be_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        in_encoding(Strip(make_segments()), "ascii")


# --- foreign text ----------------------------------------------------------------------------


def test_markup_and_control_characters_are_shown_not_obeyed() -> None:
    video = make_video(path=HOSTILE, codec=HOSTILE)
    frames = make_frames(video=video, decoder_reason=HOSTILE, warnings=(HOSTILE,))
    tokens = TokenCounts(32, 196, (("frames", 6272), (HOSTILE, 952)), (), 33, 986, 24)
    answer = make_answer(
        question=HOSTILE,
        text=HOSTILE,
        method=HOSTILE,
        method_settings={"name": HOSTILE},
        frames=frames,
        tokens=tokens,
        model=make_model(id=HOSTILE, revision=HOSTILE, reason=HOSTILE, device_name=HOSTILE),
        timings=Timings(STAGES | {HOSTILE: 1.0}, 96.65, 9.6, 0.8),
    )
    page = words(report([answer], [make_baseline(method=HOSTILE, text="other")]), width=400)
    fields = 4 + 1 + 1 + 5 + 2 + 1 + 1 + 1  # at least: header, warning, model, method, funnel, stage, question
    assert page.count(SHOWN) >= fields
    assert page.count("[bold]") == page.count("[/] [/]")


def test_markup_in_the_small_tables_is_shown() -> None:
    table = words(methods_table([{HOSTILE: "1", "b": HOSTILE}]), 400)
    doctor = words(doctor_table({HOSTILE: {HOSTILE: HOSTILE}}), 400)
    lines = words(error_line(UsageError(HOSTILE, HOSTILE)), 400) + words(warning_line(HOSTILE), 400)
    assert [page.count(SHOWN) for page in (table, doctor, lines)] == [2, 3, 3]


def test_a_figure_never_wraps_but_its_label_does() -> None:
    page = render(report([make_answer()], [make_baseline()]), 40)
    assert re.search(r"32 frames x +6,272 +100\.0% +█{8}$", page, re.MULTILINE)
    assert re.search(r"paper +4\.3 TFLOP +40\.8 TFLOP +9\.49x", page)


def test_an_answer_keeps_its_own_lines_but_nothing_that_acts() -> None:
    page = render(report([make_answer()], [make_baseline(text=" One.\nTwo.\x1b[2J\n")]))
    lines = [line.strip() for line in page.splitlines()]
    assert lines[-3:-1] == ["full     One.", "Two.\\x1b[2J"]


# --- what it says ----------------------------------------------------------------------------


def test_the_header_names_file_frames_decoder_and_checkpoint() -> None:
    page = words(report([make_answer()]))
    for fact in (
        "clips/match.mp4",
        "h264, 1280x720, 5:00 min long, 128.0 MiB",
        "32 of 9,000, one every 9.7 s",
        "decord: it reads h264 exactly",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf, random weights",
        "0d50680527681998e456c7b78950205bedd8a068",
        "the card has 79.6 GiB, enough for the 7B",
        "NVIDIA H100 80GB HBM3 (cuda:0), bfloat16",
        "holitom (retain_ratio 0.15, tau 0.8, beta 0.6, inner_layer 18, inner_ratio 0.5)",
    ):
        assert fact in page


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("demo", "bundled with holitom"),
        ("random", "random weights"),
        ("published", "published weights"),
        ("local", "local weights"),
    ],
)
def test_header_times_and_comparison_name_the_checkpoint(kind: Any, said: str) -> None:
    answer = make_answer(model=make_model(kind=kind, id="hub/tiny"))
    page = words(report([answer], [make_baseline()]))
    for place in (f"checkpoint hub/tiny, {said}", f"Time tiny, {said}", f"Against full tiny, {said}"):
        assert place in page


def test_the_funnel_counts_and_draws_to_scale() -> None:
    page = render(report([make_answer()]))
    rows = [line_with(label, page) for label in ("32 frames x", "temporal", "spatial", "inside, from layer 18")]
    figures = [("6,272", "100.0%"), ("4,270", "68.1%"), ("952", "15.2%"), ("476", "7.6%")]
    assert all(f"{count}  " in row and share in row for row, (count, share) in zip(rows, figures, strict=True))
    blocks = [row.count("█") for row in rows]
    assert [round(block / blocks[0], 1) for block in blocks] == [1.0, 0.7, 0.1, 0.1]
    assert "+1 newline token" in page
    assert "986 tokens = 952 visual + 1 newline + 33 text" in page


def test_charts_stop_growing_on_wide_terminals_but_text_does_not() -> None:
    path = "/".join(["folder"] * 25)
    page = render(report([make_answer(frames=make_frames(video=make_video(path=path)))]), 200)
    charts = [line.rstrip() for line in page.splitlines() if re.search("[█▀]", line)]
    assert max(len(line) for line in charts) == 2 + 100
    assert path in page


def test_stage_bars_follow_one_another() -> None:
    timings = Timings({"vision": 100.0, "compress": 100.0, "prefill": 200.0}, 400.0, None, 0.4)
    page = render(report([make_answer(timings=timings)]))
    drawn = [re.search("[█▉▊▋▌▍▎▏▐▕]+", line_with(f"{name} ", page)) for name in timings.stages_ms]
    spans = [match.span() for match in drawn if match]
    assert [stop - start for start, stop in spans] == pytest.approx([14, 14, 28], abs=3)
    for (_, stop), (start, _) in pairwise(spans):
        assert stop - 1 <= start <= stop  # two halves may share a column


def test_times_and_costs_are_given_with_units() -> None:
    page = words(report([make_answer()]))
    for fact in (
        "decode video 450.2 ms",
        "sample 0.2 ms",
        "23 more tokens 220.8 ms",
        "TTFT 96.7 ms (vision + compress + prefill + sample)",
        "per token 9.6 ms, 104.2 tokens/s",
        "time to answer 798.2 ms",
        "paper FLOPs 4.3 TFLOP, with every token 40.8 TFLOP (9.49x)",
        "true FLOPs 15.2 TFLOP, with every token 95.4 TFLOP (6.28x)",
        "peak memory 14.9 GiB GPU, 3.1 GiB host",
        "24 tokens, stopped by itself",
    ):
        assert fact in page


def test_what_was_not_measured_is_not_invented() -> None:
    tokens = TokenCounts(32, 196, (("frames", 6272), ("merge", 952)), (), 33, 986, 1)
    timings = Timings(STAGES, ttft_ms=96.65, tpot_ms=None, time_to_answer_s=0.58)
    cpu = make_model(device="cpu", device_name="cpu", revision=None, reason="")
    answer = make_answer(
        tokens=tokens, timings=timings, finish_reason="length", memory=Memory(None, 1 << 30), model=cpu
    )
    page = words(report([answer], [make_baseline(memory=Memory(None, 1 << 30))]))
    assert "per token unknown: there was only one token" in page
    assert "peak memory 1.0 GiB host" in page
    assert "1 tokens" not in page.replace("1 tokens, cut off by the limit of 256", "")
    assert "per token unknown 21.5 ms n/a" in page
    assert "device cpu, bfloat16" in page
    for absent in ("GPU", "more tokens", "revision", "chosen", "counted in the inside rows"):
        assert absent not in page


def test_missing_frames_and_warnings_stand_out_once_each() -> None:
    frames = make_frames(19, frames_missing=13, warnings=("The file is cut off.",))
    answers = [make_answer(frames=frames, warnings=("The file is cut off.", "Noise."))] * 2
    page = render(report(answers))
    assert "19 of 9,000, one every 16.7 s, 13 could not be read" in page
    assert [line.strip() for line in page.splitlines() if line.startswith("warning")] == [
        "warning: The file is cut off.",
        "warning: Noise.",
    ]


def test_several_questions_show_what_they_share_once() -> None:
    stages = STAGES | {"prefill": 30.0, "sample": 0.3}
    assert "Time for the clip" not in render(report([make_answer()]))  # one question's stages stay together
    second = make_answer(question="Who?", timings=Timings(stages, 104.0, 9.7, 0.81))
    page = render(report([make_answer(), second]))
    for once in ("match.mp4\n", "Visual tokens", "Segments", "vision ", "Time for the clip"):
        assert sum(line.lstrip().startswith(once.strip()) for line in page.splitlines()) == 1, once
    for each in ("Question 1 of 2", "Question 2 of 2"):
        assert page.count(each) == 1
    assert re.findall(r"prefill +(\d+\.\d ms)", page) == ["23.0 ms", "30.0 ms"]
    assert re.findall(r"TTFT +(\d+\.\d ms)", page) == ["96.7 ms", "104.0 ms"]


def test_what_questions_do_not_share_is_shown_with_each() -> None:
    tokens = TokenCounts(32, 196, (("frames", 6272), ("merge", 800)), (), 33, 834, 24)
    page = render(report([make_answer(), make_answer(tokens=tokens, segments=make_segments(3))]))
    assert page.count("Visual tokens") == page.count("Segments") == 2
    assert "holitom keeps 12.8%" in page


def test_frames_from_memory_need_no_file() -> None:
    frames = Frames(np.zeros((2, 4, 6, 3), np.uint8), np.array([0.0, 1.5]))
    page = words(report([make_answer(frames=frames)]))
    assert "frames from memory video 6x4 pixels, not read from a file frames 2, one every 1.5 s" in page


# --- side by side ----------------------------------------------------------------------------


def test_the_baseline_stands_beside_with_ratios() -> None:
    page = words(report([make_answer()], [make_baseline()]))
    for row in (
        "holitom full ratio",
        "visual tokens 952 6,272 6.59x",
        "TTFT 96.7 ms 290.0 ms 3.00x",
        "per token 9.6 ms 21.5 ms 2.24x",
        "time to answer 798.2 ms 1.3 s 1.59x",
        "GPU memory peak 14.9 GiB 16.2 GiB 1.09x",
        "paper FLOPs 4.3 TFLOP 40.8 TFLOP 9.49x",
    ):
        assert row in page


def test_agreement_is_about_the_text() -> None:
    same = words(report([make_answer(text="A ball.")], [make_baseline(text="A ball.")]))
    other = words(report([make_answer(text="A ball.")], [make_baseline(text="A ball")]))
    assert "Both answers are the same" in same
    assert "A ball" not in same
    assert "The answers differ. holitom A ball. full A ball" in other


def test_a_baseline_for_other_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        report([make_answer(), make_answer()], [make_baseline()])


# --- the strip -------------------------------------------------------------------------------


def strip_line(segments: Sequence[Segment], width: int) -> str:
    return line_with("frames", render(segment_strip(segments), width)).split()[1]


def test_the_strip_is_to_scale_and_alternates() -> None:
    segments = [Segment(0, 8, 0.0, 7.0, 50), Segment(8, 10, 8.0, 9.0, 20), Segment(10, 40, 10.0, 39.0, 130)]
    assert strip_line(segments, 88) == "▀" * 16 + "▄" * 4 + "▀" * 60
    page = render(segment_strip(segments), 88)
    assert line_with("start", page).split() == ["start", "0.0s", "8.0s"]  # 10.0s has no room
    assert line_with("tokens", page).split() == ["tokens", "50", "20", "130"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 2, 32, 160, 999])
def test_any_number_of_segments_fits(count: int, width: int) -> None:
    segments = make_segments(count, 1000, 30_000)
    blocks, together = collapse(segments, (width - 8) // 2)
    strip = strip_line(segments, width)
    assert len(strip) == width - 8
    assert len(re.findall(r"▀+|▄+", strip)) == len(blocks) <= width // 2
    assert sum(block.tokens for block in blocks) == 30_000
    assert (blocks[0].start_frame, blocks[-1].stop_frame) == (0, 1000)
    assert (f"each block stands for {together} segments" in render(segment_strip(segments), width)) == (together > 1)


def test_a_block_too_short_for_a_column_still_gets_one() -> None:
    short = [Segment(i, i + 1, float(i), float(i), 1) for i in range(10)]
    blocks = [*short, Segment(10, 1000, 10.0, 999.0, 900)]
    assert edges(blocks, 40) == [*range(11), 40]
    backwards = [
        Segment(0, 990, 0.0, 989.0, 900),
        *(Segment(990 + i, 991 + i, 990.0 + i, 990.0 + i, 1) for i in range(10)),
    ]
    assert edges(backwards, 40) == [0, *range(30, 41)]


def test_labels_stand_at_their_block_or_not_at_all() -> None:
    assert labels([0, 4, 6, 12, 14], ["aaa", "b", "cccc", "ddd"], 14) == "aaa b cccc"
    assert labels([0, 3, 9], ["aaa", "b"], 9) == "aaa"  # no blank would be left between


def test_the_summary_adds_the_answers_to_the_stages_of_the_clip() -> None:
    later = STAGES | {"prefill": 30.0, "sample": 0.5}
    answers = [
        make_answer(timings=Timings(STAGES, ttft_ms=96.65, tpot_ms=9.6, time_to_answer_s=0.9)),
        make_answer(timings=Timings(later, ttft_ms=103.9, tpot_ms=9.6, time_to_answer_s=0.8)),
    ]
    clip = sum(ms for name, ms in STAGES.items() if name not in ("prefill", "sample"))
    said = words(summary(answers))
    assert f"2 answers {1700 - 2 * clip:.1f} ms" in said
    assert f"in all {(1700 - clip) / 1000:.1f} s, without loading" in said
    assert "prefill" not in said
    for part in ("match.mp4", "decode video", "temporal merge", "holitom keeps 15.2%", "random weights"):
        assert part in said
    for width in WIDTHS:
        assert widest(summary(answers), width) <= width
