"""The page of `run report` in a real browser: no overflow on a phone, every picture has a size, nothing is loaded."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium, chromium-browser or google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000",
)  # fmt: skip
WATCH = "<script>var said = []; onerror = m => said.push(m); console.error = (...m) => said.push(m.join(' '))</script>"
MEASURE = """<script>
const all = css => [...document.querySelectorAll(css)];
const shown = () => all('.by-metric').filter(one => one.offsetHeight).map(one => one.className.split('of-')[1]);
all('details').forEach(one => one.open = true);
const first = shown();
all('input[type=radio]')[1].click();
const found = {
  inner: innerWidth, page: document.documentElement.scrollWidth, said: said, first: first, second: shown(),
  pictures: all('svg').map(one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]),
  lost: all('a').filter(one => !document.getElementById(one.getAttribute('href').slice(1))).length,
  anchors: all('a').length, loaded: performance.getEntriesByType('resource').map(one => one.name),
  wide: all('.scroll').filter(one => one.scrollWidth > one.clientWidth + 1).length,
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
};
const place = document.createElement('pre');
place.id = 'measured';
place.textContent = JSON.stringify(found);
parent.document.body.append(place);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of nine runs: detectors, options and seeds, one trained, one that failed, one cut off."""
    from outlie.cli import main

    folder = tmp_path_factory.mktemp("browser")
    timed = ["metrics.latency=true", "metrics.latency_seconds=0.01"]
    for words in (
        ["detector=knn", "metrics.bootstrap=20", *timed],
        ["detector=knn", "seed=1"],
        *(["detector=knn", f"detector.k={k}"] for k in (9, 11, 13, 15)),
        ["detector=dte_c", "trainer.max_epochs=3", *timed],
    ):
        assert main(["train", "trainer.threads=1", "metrics=fast", f"output_dir={folder}", *words]) == 0
    for name, text in (
        ("x-failed-0", '{"schema": 1, "status": "failed", "error": "' + "long" * 60 + '"}'),
        ("x-cut-1", "{"),
    ):
        (folder / "train" / name).mkdir()
        (folder / "train" / name / "config.yaml").touch()
        (folder / "train" / name / "result.json").write_text(text)
    for file in folder.glob("train/*/result.json"):  # the best is the last column, which a phone does not show
        if "k: 9\n" in (file.parent / "config.yaml").read_text():
            result = json.loads(file.read_text())
            result["metrics"]["test"] |= {"auroc": 0.9999, "average_precision": 0.9999}
            file.write_text(json.dumps(result))
    assert main(["report", f"output_dir={folder}"]) == 0
    return folder / "report.html"


def measured(page, tmp_path, width, *flags):
    """What the browser says of a copy of the page with a script in it."""
    text = page.read_text().replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{MEASURE}</body>")
    around = tmp_path / "around.html"  # a frame, because a window is never narrower than 500
    frame = f'<iframe width="{width}" height="844" style="border:0" srcdoc="{escape(text)}"></iframe>'
    around.write_text(f'<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}')
    command = [BROWSER, *QUIET, *flags, f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,900"]
    done = subprocess.run([*command, "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_works(page, tmp_path, width):
    found = measured(page, tmp_path, width)
    assert found["said"] == [] and found["loaded"] == []
    assert found["inner"] == width and found["page"] <= width
    assert len(found["pictures"]) >= 8
    assert all(100 < across <= width and down > 50 for across, down in found["pictures"])
    assert found["anchors"] >= 8 and found["lost"] == 0
    assert set(found["first"]) == {"auroc"} and set(found["second"]) == {"average_precision"}
    assert found["wide"] > 0 or width > 390  # wide tables scroll in their own boxes


def test_light_and_dark_differ(page, tmp_path):
    light = measured(page, tmp_path, 390)
    dark = measured(page, tmp_path, 390, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)"

    def brightness(colour):
        return sum(int(one) for one in re.findall(r"\d+", colour)[:3])

    assert brightness(dark["paper"]) < 150 < 600 < brightness(dark["ink"])
