"""The report in a real browser, as wide as a phone and as a desk: no errors, no overflow, no text cut off."""

import html
import json
import re
import shutil
import subprocess
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from drawn_results import HOSTILE, drawn_results
from PIL import Image

from project.report.page import page
from project.report.page.reading import understand

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (390, 1440)
LAYERS = ["conv1", *[f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in range(4) for c in (1, 2, 3)], "fc"]
PAGES = {
    "two domains": drawn_results(),
    "six domains": drawn_results(
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        [f"method-{place}" for place in range(5)],
        [f"a rather long name of class {place}" for place in range(12)],
        LAYERS,
        pictures=3,
    ),
    "strange names": drawn_results(HOSTILE, ("pleas",), HOSTILE, HOSTILE),
}
LOOK = Path(__file__).with_name("look.js")


SPOILT = (
    "<div style='width:99px;overflow:hidden;white-space:nowrap'>much longer than the box that it stands in</div>"
    "<div style='width:2000px'>wide</div></main>"
)


def pages() -> dict[str, str]:
    """Name -> report; of the last one a reader would complain."""
    pixel = BytesIO()
    Image.new("RGB", (72, 40), "#c93").save(pixel, "JPEG")
    small = b64encode(pixel.getvalue()).decode()
    lost = {f"pleas-{size}": {"clipart": dict.fromkeys(("cat", "dog"), small)} for size in ("1.00", "1.50", "2.00")}
    found = {name: page(understand(results), lost) for name, results in PAGES.items()}
    return found | {"spoilt": page(understand(PAGES["two domains"])).replace("</main>", SPOILT)}


def look(folder: Path) -> tuple[list[Any], list[str]]:
    """What a browser finds in every page at every width, and what its console says."""
    frames = "".join(
        f'<iframe data-name="{name} at {width}" srcdoc="{html.escape(text)}" '
        f'style="width:{width}px;height:900px;border:0"></iframe>'
        for name, text in pages().items() for width in WIDTHS
    )  # fmt: skip
    script = LOOK.read_text()
    text = f"<!doctype html><meta charset=utf-8>{frames}<pre id=found></pre><script>{script}</script>"
    (folder / "frames.html").write_text(text)
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000", "--enable-logging=stderr",
            "--virtual-time-budget=20000", "--dump-dom", (folder / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome to open it in")
def test_it_opens_on_a_phone_and_on_a_desk(tmp_path: Path) -> None:
    found, console = look(tmp_path)
    assert not console
    *sound, small, wide = found
    assert len(sound) == len(PAGES) * len(WIDTHS)
    for one in (small, wide):
        assert any("wide" in fault for fault in one["faults"])
        assert "cut off: much longer than the box that it stands in" in one["faults"]
    for one in sound:
        assert one["width"] in WIDTHS
        assert not one["faults"], one["name"]
        assert one["texts"] > 100, "it looked at something"
        assert one["tips"] > 10
        assert one["choices"] > 3
