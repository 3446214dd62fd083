"""Pictures of the documentation: commands as a terminal of 100 columns shows them, and pages as a browser does.

    python benchmarks/captures.py [--browser chromium]

Writes docs/images/*.svg by rich, and *.png of report.html 1280 and 390 pixels wide where there is a Chromium.
"""

import argparse
import os
import pty
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
COLUMNS = 100
CARDS = "-c 2xRTX3090,1xT4 --batch-size 8 --prompt-len 1024 --gen-len 256"
COMMANDS = {
    "terminal-plan": f"llmpq plan llama-3-70b {CARDS}",
    "terminal-infeasible": "llmpq plan llama-3-8b -c 1xT4 --batch-size 32 --prompt-len 2048 --gen-len 256",
    "terminal-whatif": f"llmpq whatif llama-3-70b {CARDS} --add +1xRTX3090 --replace T4:0=L4",
}
STYLE = "width:390px;height:1800px;border:0"  # a window cannot be made as narrow as a phone
FRAME = f'<!DOCTYPE html><html><body style="margin:0"><iframe src="page.html" style="{STYLE}"></iframe></body></html>'


def on_a_terminal(command: str) -> str:
    """What the command writes to a terminal, colours and all; its notices below."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    words = [sys.executable, "-m", *command.split()]
    with subprocess.Popen(words, stdout=slave, stderr=subprocess.PIPE, env=environment) as process:
        os.close(slave)
        written = b""
        while chunk := _read(master):
            written += chunk
        assert process.stderr is not None
        said = process.stderr.read()
    return written.decode().replace("\r\n", "\n") + said.decode()


def _read(master: int) -> bytes:
    """What a terminal has to say; nothing when the process behind it has ended."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


def capture(name: str, command: str) -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(on_a_terminal(command)))
    drawn = re.sub(
        r"@font-face \{.*?\}\s*", "", console.export_svg(title="llmpq", unique_id=name), flags=re.S
    )  # fonts of the web
    (IMAGES / f"{name}.svg").write_text(drawn, encoding="utf-8")


def photograph(browser: str, folder: Path) -> None:
    """report.html of the first command on a desktop and, in a frame of its width, on a phone."""
    plan = subprocess.run([sys.executable, "-m", *COMMANDS["terminal-plan"].split(), "--json"], capture_output=True, check=True)
    (folder / "plan.json").write_bytes(plan.stdout)
    page = folder / "page.html"
    subprocess.run([sys.executable, "-m", "llmpq", "report", str(folder / "plan.json"), "-o", str(page)], check=True)
    (folder / "phone.html").write_text(FRAME, encoding="utf-8")
    for name, source, size in (("report-desktop", page, "1280,1100"), ("report-phone", folder / "phone.html", "390,1800")):
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files", f"--window-size={size}"]
        shot = f"--screenshot={IMAGES / name}.png"
        subprocess.run([browser, *options, shot, source.as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", default="chromium")
    browser = shutil.which(parser.parse_args().browser)
    for name, command in COMMANDS.items():
        capture(name, command)
    if browser is None:
        print("no browser was found: the pages were not photographed", file=sys.stderr)
        return
    with TemporaryDirectory() as folder:
        photograph(browser, Path(folder))


if __name__ == "__main__":
    main()
