"""Reports as a browser shows them: whole, legible and alone, by day, by night, on a phone and on paper.

They need Chromium and are skipped where there is none, unless RECOLLECT_REQUIRE_BROWSER is set.
"""

import os
import shutil

import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis import compare

NEEDED = bool(os.environ.get("RECOLLECT_REQUIRE_BROWSER"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# What a view looks like: the width of its window in pixels, the colours that the reader prefers, the medium.
VIEWS = {
    "light": (1100, "light", "screen"),
    "dark": (1100, "dark", "screen"),
    "phone": (390, "light", "screen"),
    "print": (680, "dark", "print"),  # A4 without its margins, by someone who reads at night
}
NARROWEST, A4 = 320, 1009  # the width of a small phone, and the height of a page without its margins


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if NEEDED:
            raise
        pytest.skip("playwright is not installed")
    if CHROMIUM is None:
        assert not NEEDED, "RECOLLECT_REQUIRE_BROWSER is set, but there is no Chromium"
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


def bidirectional():
    x = torch.randn(3, 60, 2)
    return recollect.diagnose(nn.LSTM(2, 6, num_layers=2, bidirectional=True, batch_first=True), x)


def exploding():
    """With long names, long lines of code and several findings."""
    inner = nn.Sequential()
    layer = recollect.nn.Recurrent(recollect.cells.rnn_relu, 3, 16)
    inner.add_module("a_recurrent_layer_with_quite_a_long_name", layer)
    model = nn.Sequential()
    model.add_module("the_encoder_of_everything", inner)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(1.1 * torch.eye(16))
        layer.bias_ih_l0[:8] = -50.0
    return recollect.diagnose(model, torch.rand(60, 4, 3))


def comparison():
    x = torch.randn(3, 60, 2)
    cells = {"LSTM": nn.LSTM(2, 6, batch_first=True), "GRU": nn.GRU(2, 6, batch_first=True)}
    return compare("Two cells", {"fresh": {name: recollect.diagnose(cell, x) for name, cell in cells.items()}})


@pytest.fixture(scope="module")
def reports(everything, tmp_path_factory):
    """Files to look at, by name."""
    folder, paths = tmp_path_factory.mktemp("reports"), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shown = {make.__name__: make() for make in (bidirectional, exploding, comparison)}
    for name, each in {"everything": everything, **shown}.items():
        paths[name] = folder / f"{name}.html"
        each.to_html(paths[name])
    return paths


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["everything", "bidirectional", "exploding", "comparison"])
def test_a_report(browser, reports, name, view):
    path, (width, colours, medium) = reports[name], VIEWS[view]
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=colours)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.emulate_media(media=medium, color_scheme=colours)
    page.goto(path.as_uri())

    every_image_is_whole(page, path.read_text(encoding="utf-8").count("data:image/png;base64,"))
    every_figure_is_drawn(page, path.read_text(encoding="utf-8").count("<figure"))
    every_picture_has_words(page)
    nothing_leaves_the_page(page)
    letters_can_be_read(page)
    if view == "phone":
        page.set_viewport_size({"width": NARROWEST, "height": 600})
        nothing_leaves_the_page(page)
    if view == "print":
        nothing_is_cut_on_paper(page)
    assert [each for each in requests if not each.startswith("data:image/png;")] == [path.as_uri()]
    assert complaints == []
    context.close()


def every_image_is_whole(page, number):
    decoded = page.evaluate("""async () => {
        const images = [...document.querySelectorAll("img")].map(each => each.src);
        images.push(...[...document.querySelectorAll("svg image")].map(each => each.getAttribute("href")));
        for (const address of images) {
            const image = new Image();
            image.src = address;
            await image.decode();
            if (!(image.naturalWidth > 0)) return -1;
        }
        return images.length;
    }""")
    assert decoded == number


def every_figure_is_drawn(page, number):
    figures = page.evaluate("""() => [...document.querySelectorAll("figure")].map(figure => {
        const {width, height} = figure.getBoundingClientRect();
        const visible = each => { const box = each.getBBox(); return box.width + box.height > 0; };
        const charts = [...figure.querySelectorAll("svg[role=img]")].map(svg => ({
            size: Math.min(svg.clientWidth, svg.clientHeight),
            data: [...svg.querySelectorAll("polyline, circle, image")].filter(visible).length,
            around: [...svg.querySelectorAll("text, path, rect")].filter(visible).length,
        }));
        return {width, height, charts};
    })""")
    assert len(figures) == number > 0
    for figure in figures:
        assert min(figure["width"], figure["height"]) > 100
        assert figure["charts"]
        for chart in figure["charts"]:
            assert chart["size"] > 40
            assert chart["data"] > 0
            assert chart["around"] > 0


def every_picture_has_words(page):
    silent = page.evaluate("""() => [...document.querySelectorAll("svg, img")].filter(each =>
        each.getAttribute("aria-hidden") !== "true"
        && !(each.tagName === "IMG" ? each.alt : each.getAttribute("role") === "img" && each.getAttribute("aria-label"))
    ).length""")
    assert silent == 0


def nothing_leaves_the_page(page):
    outside = page.evaluate("""() => [...document.querySelectorAll("main, main *")].filter(each => {
        if (each.closest(".wide table") || each.closest("defs")) return false;  // tables scroll in a place of their own
        const box = each.getBoundingClientRect();
        return box.width > 0 && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
    }).map(each => each.outerHTML.slice(0, 80))""")
    assert outside == []
    width, room = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room


def letters_can_be_read(page):
    """Text of at least 4.5 : 1 against what is behind it (WCAG 2.2, 1.4.3), and no smaller than 8.5 pixels."""
    faint, small = page.evaluate("""() => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
        const behind = each => {
            for (; each; each = each.parentElement) {
                const colour = numbers(getComputedStyle(each).backgroundColor);
                if (colour.length < 4 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
        };
        const faint = [], small = [];
        for (const each of document.querySelectorAll("main *:not(style)")) {
            if (![...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
            const style = getComputedStyle(each), svg = each.ownerSVGElement;
            const [a, b] = [numbers(svg ? style.fill : style.color), behind(each)].map(light);
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (contrast < 4.5) faint.push([contrast, each.outerHTML.slice(0, 80)]);
            const scale = svg ? svg.getScreenCTM().a : 1;
            if (parseFloat(style.fontSize) * scale < 8.5) small.push(each.outerHTML.slice(0, 80));
        }
        return [faint, small];
    }""")
    assert faint == []
    assert small == []


def nothing_is_cut_on_paper(page):
    tallest, hidden, behind = page.evaluate("""() => [
        Math.max(...[...document.querySelectorAll("figure, .finding, header")]
            .map(each => each.getBoundingClientRect().height)),
        [...document.querySelectorAll("pre, .wide")].filter(each => each.scrollWidth > each.clientWidth + 1)
            .map(each => each.outerHTML.slice(0, 80)),
        getComputedStyle(document.body).backgroundColor,
    ]""")
    assert tallest < A4
    assert hidden == []
    assert behind == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
