"""Write the dashboards: ``python service/deploy/grafana/generator [FOLDER]``.

The JSON files are committed, so that nobody needs to run this to use them; a test runs it and
expects no difference.
"""

import json
import sys
from pathlib import Path

import fleet
import layers
import one_run
import own_service

BOARDS = {
    "fleet": fleet.BOARD,
    "run": one_run.BOARD,
    "layers": layers.BOARD,
    "service": own_service.BOARD,
}


def main() -> None:
    """Write every dashboard into the folder, beside the generator by default."""
    given = sys.argv[1:2]
    folder = Path(given[0]) if given else Path(__file__).parent.parent / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    for name, board in BOARDS.items():
        text = json.dumps(board, indent=2, ensure_ascii=False)
        (folder / f"gradwatch-{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
