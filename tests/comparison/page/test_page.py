"""The page as a browser has it, the table and the pictures, of whole reports and of such as lack nearly everything."""

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hybrids.comparison.page import _page, write_report
from hybrids.comparison.page.columns import read_columns, rounded

VOID = {"br", "img", "meta"}


class Page(HTMLParser):
    """What a browser would see: balanced tags, every attribute, the text, and the cells of each table."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.tables, self.texts, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append([])

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"

    def handle_data(self, data):
        if {"style", "title"} & set(self.open):
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open) and data.strip():
            self.tables[-1][-1][-1].append(data)


def parsed(out) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def words_of(report) -> Page:
    """The page without its pictures."""
    return Page(_page(report, read_columns(report), [], []))


def rows(page: Page, first: str) -> list[list[str]]:
    """The texts of the cells of the table whose first column is named so."""
    return read_rows(next(table for table in page.tables if table[0][0] == [first]))


def read_rows(table) -> list[list[str]]:
    return [[" ".join(" ".join(cell).split()) for cell in row] for row in table]


def number(text: str) -> tuple[float, float]:
    """A written number, and the unit of its last digit."""
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    mantissa, _, power = text.replace("−", "-").replace(",", "").partition(" × 10")
    scale = 10.0 ** int(power.translate(raised) or 0)
    return float(mantissa) * scale, 10.0 ** -len(mantissa.partition(".")[2]) * scale


def cells(page: Page, recipe: str, metric: str) -> list[str]:
    """The texts of a recipe's cell in the tables of every measure."""
    for table in page.tables:
        names = [head[1] if len(head) > 1 and head[0] in AXES else head[0] for head in table[0]]
        if names[0] == "Recipe" and metric in names:
            for row in table[1:]:
                if row[0] and row[0][0] == recipe:
                    return row[names.index(metric)]
    raise AssertionError(f"no cell of {recipe} and {metric}")


AXES = (
    "Quality",
    "Mode coverage",
    "Sharpness",
    "Latent control",
    "Likelihood",
    "Speed and cost",
    "Stability",
    "my axis",
)
LABELS = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "precision": "Precision",
    "coverage": "Coverage",
    "nearest_train": "Nearest training example",
    "high_frequency": "High frequencies",
    "laplacian": "Variance of Laplacian",
    "reconstruction": "Reconstruction error",
    "probe": "Linear probe",
    "bits_per_dim": "Bits per dimension",
    "samples_per_second": "Samples per second",
    "evaluations": "Network evaluations",
    "flops_per_sample": "FLOPs per sample",
    "spikes": "Gradient spikes",
    "my own/metric": "My own/metric",
}


@pytest.mark.slow
def test_every_number_of_the_report_is_on_the_page_to_its_shown_precision(written):
    report, out = written
    page, seen = parsed(out), 0
    for recipe in report["recipes"]:
        for metric, label in LABELS.items():
            cell, summary = cells(page, recipe["title"], label), recipe["summary"].get(metric)
            if summary is None:
                assert cell[0] == "–" and re.fullmatch("[a-z]", cell[1]), (recipe["title"], metric, cell)
                continue
            value, unit = number(cell[0])
            half = (summary["high"] - summary["low"]) / 2
            # With an interval the digits go as far as it needs; hundreds may be what is left.
            error = half / 6 if half > 0 else unit / 2
            assert abs(value - summary["mean"]) <= 1.0001 * error, (recipe["title"], metric, cell)
            if half > 0:
                ends = [number(end) for end in cell[1].strip("[]").split(", ")]
                assert unit <= half / 2.99 and all(end[1] == pytest.approx(unit) for end in ends)
                assert abs(ends[0][0] - summary["low"]) <= 1.0001 * error
                assert abs(ends[1][0] - summary["high"]) <= 1.0001 * error
            seen += 1
    assert seen > 70
    for metric, figure in report["real"].items():
        assert abs(number(cells(page, "Real data", LABELS[metric])[0])[0] / figure["value"] - 1) < 0.006
        floor, spread = cells(page, "Noise floor", LABELS[metric])[0].split(" ± ")
        assert abs(number(floor)[0] / figure["floor"] - 1) < 0.006
        assert abs(number(spread)[0] / figure["floor_spread"] - 1) < 0.06


@pytest.mark.slow
def test_the_page_says_what_it_is_about(written):
    report, out = written
    page = parsed(out)
    for said in ("digits, 1 × 8 × 8, 17 grey levels, 1,500 training examples", "64,000 images seen for each run",
                 "about 500,000 for each model", "2,000 of each run", "cpu, 1 thread, PyTorch 2.13.0, Python 3.11",
                 "confirmed", "contradicted", "not measured", "undecided", "no usual word", "“blurry”",
                 "0.43 of real is below 0.9", "; 1,750 of real data",
                 "Not measured for any of these recipes: Factor vae: these data have no factors"):  # fmt: skip
        assert said in page.text, said
    assert report["command"] in " ".join(page.text.split())
    for metric in report["metrics"]:
        assert (
            "metric-" + re.sub("[ /]", "-", metric["name"]) in page.ids and metric["says"].split(" (")[0] in page.text
        )
    for recipe in report["recipes"]:
        assert recipe["words"] in page.text and f"{recipe['parameters']:,}" in page.text
        for run in recipe["runs"]:
            assert run["run"] in page.text and f"{run['seconds']:,.1f}" in page.text
    heads = [tag for tag in re.findall(r"<h2[^>]*>(.*?)</h2>", (out / "report.html").read_text())]
    assert heads == ["The numbers", "Usual words and verdicts", "Samples", "Reconstructions", "Interpolations",
                     "Charts", "Every measure", "Definitions of the metrics", "Failed or refused",
                     "Every run"]  # fmt: skip


@pytest.mark.slow
def test_the_page_fetches_nothing_and_its_links_lead_somewhere(written):
    page = parsed(written[1])
    assert len(page.ids) == len(set(page.ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster"):
            target = attributes.get(name)
            if target is None:
                continue
            if tag == "a" and target.startswith("#"):
                assert target[1:] in page.ids, target
            elif tag == "a":
                assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target)
            else:
                assert tag == "img" and target.startswith("data:image/png;base64,")
    html = (written[1] / "report.html").read_text()
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "width=device-width" in html


@pytest.mark.slow
def test_the_page_is_for_readers_who_do_not_see_it_too(written):
    page = parsed(written[1])
    assert ("html", {"lang": "en"}) in page.tags
    # Of the curve over training alone the floor is known.
    assert page.text.count("Dashed: the noise floor (0.300 ± 0.020) of 500 samples") == 1
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7 + 3 + 3 + 4 and all(len(image["alt"]) > 15 for image in images)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in page.tags) == len(page.tables) == 12
    assert all(
        attributes["title"] for tag, attributes in page.tags if tag == "td" and attributes.get("class") == "none"
    )


@pytest.mark.slow
def test_bold_is_only_what_is_apart_from_all_others(written):
    report, out = written
    bold = set(re.findall(r'<td class="best"><strong>([^<]*)</strong>', (out / "report.html").read_text()))
    expected = set()
    for metric in report["metrics"]:
        sign = {"lower": 1, "higher": -1}.get(metric["better"])
        found = [s for r in report["recipes"] if (s := r["summary"].get(metric["name"]))]
        if sign and len(found) > 1:
            ranked = sorted(found, key=lambda s: sign * s["mean"])
            ends = [sorted((sign * s["low"], sign * s["high"])) for s in ranked]
            if ends[0][1] < min(end[0] for end in ends[1:]):
                expected.add(rounded(ranked[0]["mean"], ranked[0]["low"], ranked[0]["high"]))
    assert expected and expected <= bold and len(bold) <= len(expected) + 2


@pytest.mark.slow
def test_the_table_comes_back_bit_for_bit(written):
    report, out = written
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert rows[0]["recipe"] == "real" and float(rows[0]["frechet"]) == report["real"]["frechet"]["value"]
    runs = [(recipe, run) for recipe in report["recipes"] for run in recipe["runs"]]
    assert len(rows) == 1 + len(runs) == 19
    for row, (recipe, run) in zip(rows[1:], runs):
        assert (row["recipe"], row["title"], row["seed"]) == (recipe["recipe"], recipe["title"], str(run["seed"]))
        assert float(row["seconds"]) == run["seconds"] and int(row["images"]) == run["images"]
        for metric in report["metrics"]:
            figure = run["figures"].get(metric["name"], {})
            for part, name in (
                ("value", ""),
                ("floor", "_floor"),
                ("floor_spread", "_floor_spread"),
                ("low", "_low"),
                ("high", "_high"),
            ):
                written_down = row[metric["name"] + name]
                assert (float(written_down) if written_down else None) == figure.get(part)


def colours(path) -> int:
    with Image.open(path) as image:
        image.load()
        return len(image.convert("RGB").quantize(16).getcolors())


@pytest.mark.slow
def test_pictures_open_are_not_blank_and_lie_on_white(written):
    names = {path.name for path in (written[1] / "figures").iterdir()}
    assert names == {"samples.png", "reconstructions.png", "interpolations.png", "axes.png", "sampling.png",
                     "training.png", "coverage-sharpness.png"}  # fmt: skip
    for name in names:
        path = written[1] / "figures" / name
        assert colours(path) > 4, name
        with Image.open(path) as image:
            assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255) and min(image.size) > 200


@pytest.mark.slow
def test_samples_on_the_page_are_the_samples(written):
    """The first picture is the grid of real data, cell by cell."""
    report, out = written
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]*)"', (out / "report.html").read_text())
    assert [alt.split(": ", 1)[1] for _, alt in found[:3]] == ["Real data", "VAE, seed 0", "GAN, seed 0"]
    real = load_file(out / report["real_samples"])["samples"]
    image = Image.open(io.BytesIO(base64.b64decode(found[0][0]))).convert("L")
    pixels = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(image.height, image.width) / 127.5 - 1
    # Cells of 64 pixels, two apart; each pixel of a digit is eight wide.
    for k in (0, 9, 63):
        top, left = 2 + 66 * (k // 8), 2 + 66 * (k % 8)
        cell = pixels[top + 4 : top + 64 : 8, left + 4 : left + 64 : 8]
        torch.testing.assert_close(cell, real[k, 0], atol=0.005, rtol=0)


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("gan", "ddpm"), seeds=(0,))
    names = ["report.html", "table.csv", *(f"figures/{name}.png" for name in ("axes", "samples", "sampling"))]
    write_report(report, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in names}
    assert write_report(json.loads((tmp_path / "report.json").read_text()), tmp_path) == tmp_path / "report.html"
    assert {name: (tmp_path / name).read_bytes() for name in names} == first
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.slow
def test_names_are_shown_as_they_are(made_up, tmp_path):
    """Markup, formulas and commas in names, reasons and settings are text everywhere."""
    evil = '<script>alert("1")</script> & $x$'
    report = made_up.report(tmp_path, recipes=("vae", "gan"), seeds=(0, 1))
    first = report["recipes"][0]
    first |= {"title": evil, "family": "<i>", "words": '--out "<b>"'}
    report["data"] = report["command"] = evil
    report["recipes"].append(made_up.refused("_x", "_x, y", "a < b && c > 'd'"))
    report["metrics"][0]["says"] = "f < g & arXiv:1706.08500"
    write_report(report, tmp_path)
    page = parsed(tmp_path)
    assert "script" not in dict(page.tags) and "b" not in {tag for tag, _ in page.tags} - {"b"}
    assert page.text.count(evil) > 5 and "a < b && c > 'd'" in page.text and '--out "<b>"' in page.text
    assert "f < g &" in page.text
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows[1]["title"] == evil and rows[-1]["title"] == "_x, y" and rows[-1]["state"] == "refused"


@pytest.mark.slow
def test_what_failed_is_said_first_and_what_diverged_where_its_number_would_be(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan", "ddpm"))
    vae, gan, ddpm = report["recipes"]
    for run in vae["runs"]:
        run["figures"]["frechet"]["value"] = math.inf
        run["curve"][-1]["frechet"] = "inf"
    gan["runs"][0]["figures"]["frechet"]["value"] = math.nan
    gan["runs"][0]["curve"][-1]["frechet"] = math.nan
    gan["runs"][2] |= {"state": "failed", "why": "loss is not finite at step 612", "figures": {}, "samples": None}
    gan["state"] = "partial"
    for recipe in (vae, gan):
        recipe["summary"] = made_up.summarized(recipe["runs"])
    lost = {"samples": torch.full((64, 1, 8, 8), math.nan)}
    save_file(lost, tmp_path / vae["runs"][0]["samples"])
    (tmp_path / ddpm["runs"][0]["samples"]).unlink()
    report["recipes"].append(made_up.refused("wgan", "WGAN", "images of 8×8 are too small"))
    report["adjectives"][0]["value"] = "nan"
    # As the file brings it back, which has texts for what JSON cannot hold.
    plain = re.sub(r"(?<![\w\"])(NaN|Infinity)(?![\w\"])", r'"\1"', json.dumps(report))
    write_report(json.loads(plain), tmp_path)
    page = parsed(tmp_path)
    assert cells(page, "VAE", "Fréchet distance")[:2] == ["diverged", "3 of 3 runs"]
    assert cells(page, "GAN", "Fréchet distance")[:2] == ["diverged", "1 of 2 runs"]
    assert "2 of 3 runs" in cells(page, "GAN", "Coverage")
    assert cells(page, "WGAN", "Fréchet distance")[0] == "–"
    warning = page.text[: page.text.index("The numbers")]
    assert "WGAN : refused: images of 8×8 are too small" in warning
    assert "GAN, seed 2 : failed: loss is not finite at step 612" in warning
    assert "64 of 64 diverged" in page.text and "nan" not in page.text.lower().split()
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert math.isnan(float(rows[4]["frechet"])) and float(rows[1]["frechet"]) == math.inf
    assert page.text.count("loss is not finite at step 612") == 2
    assert rows[6]["why"] == "loss is not finite at step 612" and rows[6]["frechet"] == ""


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("images", 64000, "64,000 images seen for each run"),
        ("seconds", 600.0, "600 s of training for each run"),
        ("flops", 1e12, "1.00 × 10¹² FLOPs of training for each run"),
    ],
)
def test_a_budget_has_its_unit(kind, value, text, made_up, tmp_path):
    assert text in words_of(made_up.report(tmp_path, recipes=()) | {"budget": {"kind": kind, "value": value}}).text


def test_intervals_and_spreads_are_explained(made_up, tmp_path):
    one = made_up.report(tmp_path, recipes=("vae",), seeds=(0,))
    three = made_up.report(tmp_path, recipes=("vae",))
    assert "Student's 95% interval over seeds" in words_of(three).text
    assert "its 95% interval over examples, which does not include the variation over seeds" in words_of(one).text
    for report in (one, three):
        assert "± is its standard deviation over random splits" in words_of(report).text
    assert "Undecided: the interval of the number spans the limit" in words_of(three).text


def test_six_failures_are_named_and_more_are_counted(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=())

    def warning(n):
        report["recipes"] = [made_up.refused(f"r{i}", f"R{i}", f"why {i}") for i in range(n)]
        text = words_of(report).text
        return text[: text.index("The numbers")]

    assert "Not everything finished" not in warning(0)
    assert "R5 : refused: why 5" in warning(6) and "more" not in warning(6)
    assert "R5 : refused: why 5" in warning(8) and "R6" not in warning(8) and "and 2 more" in warning(8)


def test_warnings_of_recipes_are_in_the_warning_box(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    report["recipes"][1]["warnings"] = ["parameters are 20% more than <the median>", "so are operations"]
    text = words_of(report).text
    box = text[: text.index("The numbers")]
    assert "Warnings. GAN : parameters are 20% more than <the median> GAN : so are operations" in box
    assert "Not everything finished" not in box


def test_a_metric_without_a_column_is_named_with_its_reason(made_up, tmp_path):
    """The reasons of recipes that trained; for a metric that the report does not list, too."""
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    report["recipes"].append(made_up.refused("wgan", "WGAN", "too small"))
    report["recipes"][0]["missing"] |= {"modes": "the data have no modes", "samples": "not a metric"}
    text = words_of(report).text
    names = "Factor vae: these data have no factors Modes covered: the data have no modes"
    assert f"Not measured for any of these recipes: {names} Definitions" in text


def test_each_number_of_a_run_is_in_its_column_and_the_cost_of_the_recipe_below(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae",), seeds=(3, 4))
    for run in report["recipes"][0]["runs"]:
        run |= {"seconds": 61.25, "run": "r"}
    head, first, second, cost = read_rows(words_of(report).tables[-1])
    assert dict(zip(head, first, strict=True)) == {
        "Recipe": "VAE vae", "Parameters": "498,003", "Settings": report["recipes"][0]["words"], "Seed": "3",
        "State": "finished", "Steps": "1,000", "Images": "64,000", "Seconds": "61.2", "FLOPs": "1.30 × 10¹²",
        "Run": "r",
    }  # fmt: skip
    assert second == ["4", *first[4:]]
    assert cost == ["Cost", "1,001", "64,064", "–", "1.25 × 10¹²", ""]


@pytest.mark.slow
def test_arrows_point_to_the_better_end(written):
    page = parsed(written[1])
    heads = {cell for table in page.tables for cell in (" ".join(" ".join(c).split()) for c in table[0])}
    signs = {row[0].split()[-1]: row[2] for row in rows(page, "Metric")[1:]}
    for name, label, sign, text in (
        ("frechet", "Fréchet distance", "↓", "lower is better"), ("coverage", "Coverage", "↑", "higher is better"),
        ("high_frequency", "High frequencies", "◎", "nearest to real"),
    ):  # fmt: skip
        assert signs[name] == f"{sign} {text}" and any(f"{label} {sign} ({text})" in head for head in heads), heads
    assert signs["nearest_train"] == "neither" and "Nearest training example" in heads


def test_a_verdict_has_the_interval_of_its_number_and_of_no_other(made_up, tmp_path):
    """The mean of the cell with its interval; of another number three digits; a word that nobody says is a dash."""
    report = made_up.report(tmp_path, recipes=("vae",))
    frechet = report["recipes"][0]["summary"]["frechet"]
    frechet |= {"mean": 2.0, "low": 1.5, "high": 2.5}
    entry = {"axis": "quality", "usual": "good", "recipe": "vae", "metric": "frechet", "verdict": "undecided",
             "because": "b"}  # fmt: skip
    odd = {"metric": "unheard", "recipe": "x", "usual": None, "value": 1.0}
    report["adjectives"] = [entry | {"value": value} for value in (2.0, 4.5, None)] + [entry | odd]
    page = words_of(report)
    first, *others, last = rows(page, "Axis")[1:]
    metric = "Fréchet distance ↓ (lower is better)"
    assert first == ["Quality", "VAE", "“good”", metric, "2.0 [1.5, 2.5]", "undecided", "b"]
    assert [row[3] for row in others] == ["4.50", "–"] and last[:4] == ["x", "–", "unheard", "1.00"]
    assert ("span", {"class": "verdict undecided"}) in page.tags


def test_reasons_have_letters_and_then_numbers(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae",), seeds=(0,))
    report["metrics"] = report["metrics"][:1]
    reasons = [f"why {i}" for i in (*range(28), 3)]
    report["recipes"] += [made_up.refused(why, f"R {i}", "") | {"missing": {"frechet": why}}
                          for i, why in enumerate(reasons)]  # fmt: skip
    page = words_of(report)
    marks = [cells(page, f"R {i}", "Fréchet distance") for i in range(29)]
    assert marks == [["–", mark] for mark in (*"abcdefghijklmnopqrstuvwxyz", "26", "27", "d")]
    assert "26 why 26 27 why 27" in page.text


@pytest.mark.slow
def test_sources_are_links(written):
    html = (written[1] / "report.html").read_text()
    assert '(Heusel et al. 2017, <a href="https://arxiv.org/abs/1706.08500">arXiv:1706.08500</a>).' in html


def old(report):
    """As reports were before they held costs, warnings, reasons and spreads."""
    del report["real_n"]
    report["metrics"] = report["metrics"][:-1]
    for recipe in report["recipes"]:
        for key in ("cost", "warnings", "missing"):
            del recipe[key]
        for run in recipe["runs"]:
            del run["missing"]
            for figure in run["figures"].values():
                del figure["floor_spread"]


def bare(report):
    """Nothing but what the schema demands."""
    report |= {"recipes": [], "adjectives": [], "real": {}, "real_samples": None}


def unmeasured(report):
    for recipe in report["recipes"]:
        recipe["summary"] = {}
        for run in recipe["runs"]:
            run |= {"figures": {}, "curve": [], "evaluations_curve": [], "samples": None}


def without_curves(report):
    for recipe in report["recipes"]:
        for run in recipe["runs"]:
            run |= {"curve": [], "evaluations_curve": []}


def without_summaries(report):
    for recipe in report["recipes"]:
        recipe["summary"] = {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "without"),
    [
        (bare, {"samples", "axes", "training", "sampling", "coverage-sharpness"}),
        (unmeasured, {"axes", "training", "sampling", "coverage-sharpness", "reconstructions"}),
        (without_curves, {"training", "sampling"}),
        (without_summaries, set()),
        (old, set()),
    ],
)
def test_what_is_missing_leaves_a_gap_and_no_error(change, without, made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"), seeds=(0,))
    (tmp_path / "figures").mkdir()
    for name in without:
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"of an earlier report")
    change(report)
    write_report(report, tmp_path)
    parsed(tmp_path)
    assert not {path.stem for path in (tmp_path / "figures").iterdir()} & without


@pytest.mark.slow
def test_points_are_scattered(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"), seeds=(0,), plane=True)
    write_report(report, tmp_path)
    page = parsed(tmp_path)
    assert "Vectors are compared and shown at unit scale" in page.text
    assert "8-gaussians, 2, unlimited draws" in page.text and "64 points: VAE, seed 0" in str(page.tags)
    assert not (tmp_path / "figures" / "coverage-sharpness.png").exists()
    for name in ("samples", "reconstructions", "interpolations"):
        assert colours(tmp_path / "figures" / f"{name}.png") > 4


@pytest.mark.slow
def test_sixteen_recipes(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("gan",), seeds=(0, 1))
    report["recipes"] = [made_up.recipe(tmp_path, "ddpm", [0, 1], title=f"Recipe {i}") for i in range(16)]
    write_report(report, tmp_path)
    page = parsed(tmp_path)
    assert all(cells(page, f"Recipe {i}", "Fréchet distance") for i in range(16))


def test_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="format 1; got 2"):
        write_report({"format": 2}, tmp_path)
