"""``python -m project.report FOLDER``: print the table of a merge again."""

import json
import sys
from pathlib import Path

from project.report.results import text_table

if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1], "results.json").read_text())
    sys.stdout.write(text_table(content["table"]) + "\n")
